"""Measure the time and the results of the shipped line: `python benchmarks/line.py`.

Runs `tuneline up` on examples/support-tickets in an empty directory, then again, and times
`tuneline --help`. Each time is of a whole process; the time of a repeated command is the median of
seven. Prints a table for people, then one JSON document on the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tuneline.core.environment import hardware_facts

RUN = Path(__file__).parents[1] / "examples" / "support-tickets" / "run.yaml"
REPEATS = 7


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        up = ["up", str(RUN), "--runs-dir", scratch, "--json"]
        first_s, document = timed(up)
        repeated_s = statistics.median(timed(up)[0] for _ in range(REPEATS))
    help_s = statistics.median(timed(["--help"])[0] for _ in range(REPEATS))
    stages = {entry["stage"]: entry for entry in document["stages"]}
    figures = {
        "hardware": hardware_facts(),
        "up_s": round(first_s, 1),
        "stages_s": {name: entry["wall_s"] for name, entry in stages.items()},
        "second_up_s": round(repeated_s, 2),
        "help_s": round(help_s, 3),
        "exact_match": {
            name.removeprefix("evaluation-"): stages[name]["metrics"]["exact_match"]
            for name in ("evaluation-base", "evaluation-tuned", "evaluation-served")
        },
        "num_heldout": stages["evaluation-tuned"]["metrics"]["num_rows"],
        "parity": {
            name.removeprefix("parity-"): {
                key: stages[name]["metrics"][key]
                for key in ("num_equal_answers", "num_prompts", "max_logprob_difference")
            }
            for name in ("parity-merged", "parity-served")
        },
        "load": stages["loadtest"]["metrics"]["scenarios"],
    }
    for name, value in figures.items():
        print(f"{name:14} {value}")
    print(json.dumps(figures))


def timed(arguments: list[str]) -> tuple[float, Any]:
    """Wall time in seconds of one `tuneline` process, and the JSON document it printed."""
    start_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tuneline", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    wall_s = time.monotonic() - start_s
    return wall_s, json.loads(done.stdout) if "--json" in arguments else None


if __name__ == "__main__":
    main()
