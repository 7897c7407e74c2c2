# ruff: noqa: E402
"""Measure every combination of the flags that matter here: `python benchmarks/tune.py`.

`tuneline tune` changes one flag at a time. This grid says what it can find on a machine. Each
combination of weights (the run's own, and each quantized form that is made), compilation, stream
interval and n-gram speculation serves a finished run for a closed loop. The figure is its goodput:
requests per second that each keep the limits of the run's objectives. The run's own settings come
first, in the middle and last, so that a drift of the machine shows. Then the run's own settings and
the best other combination are measured in turns, and the latter proves its answers.

Prints a row for each combination with the load of the machine, and one JSON document. Two cores
without other work take half a minute for a combination.

    tuneline up examples/support-tickets/run.yaml --set 'export.forms=[quantized-int8]'
    python benchmarks/tune.py [--axes weights compilation stream-interval n-gram] [--rounds 2]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The scripts of this folder would hide the packages of the same names.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from loadtest import read_report, run_loadtest
from loadtest.config import SLO, LoadTestConfig, Scenario
from tuneline.core.environment import gpu_names, hardware_facts
from tuneline.core.errors import TunelineError
from tuneline.core.verdict import read_verdict
from tuneline.pipeline.finished_run import checked
from tuneline.pipeline.run_config import load_run
from tuneline.pipeline.server import served_stage
from tuneline.pipeline.stage import DATASET, REFERENCE
from tuneline.pipeline.tune.bench import Bench, describe_settings
from tuneline.pipeline.tune.run import Options, exported_forms, make_bench
from tuneline.pipeline.tune.table import SPECULATION, STREAM_INTERVAL, Facts, Settings
from tuneline.pipeline.tune.tune import chosen_knobs, offers_of

ROOT = Path(__file__).resolve().parents[1]
AXES: Mapping[str, Sequence[Settings]] = {
    "compilation": ({"serving.enforce_eager": False},),
    "stream-interval": ({STREAM_INTERVAL: 8},),
    "n-gram": (
        {SPECULATION: {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}},
    ),
}
WEIGHTS = "weights"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=ROOT / "examples/support-tickets/run.yaml")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs")
    parser.add_argument("--forms", default="[quantized-int8]", help="The run's export.forms.")
    parser.add_argument("--axes", nargs="+", default=[WEIGHTS, *AXES], choices=[WEIGHTS, *AXES])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--requests", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    overrides = [f"export.forms={given.forms}"]
    run = load_run(given.run, overrides, given.runs_dir)
    made = checked(run, DATASET, REFERENCE, served_stage(run.config))
    forms = exported_forms(run)
    facts = Facts(run.config.serving, bool(gpu_names()), list(forms))
    (weights,) = offers_of(facts, chosen_knobs(["quantized weights"]))
    values = {WEIGHTS: weights.settings, **AXES}
    with tempfile.TemporaryDirectory() as scratch:
        options = Options(budget_s=math.inf)
        bench = make_bench(run, made, forms, options, Path(scratch))
        result = measure_grid(given, bench, [values[name] for name in given.axes])
    print(json.dumps({"hardware": hardware_facts(), **result}))


def measure_grid(
    given: argparse.Namespace, bench: Bench, axes: Sequence[Sequence[Settings]]
) -> dict[str, Any]:
    """Return the rows of all combinations, and the best one against the run's own settings."""
    combined: list[dict[str, Any]] = [
        {key: value for part in parts for key, value in part.items()}
        for parts in itertools.product(*(({}, *axis) for axis in axes))
    ]
    own = combined[0]
    combined.insert(len(combined) // 2 + 1, own)
    rows = [measure(given, bench, settings) for settings in [*combined, own]]
    others = [row for row in rows if row["settings"]]
    best = max(others, key=lambda row: row["goodput_rps"])["settings"]
    turns: dict[str, list[float]] = {"own": [], "best": []}
    parity = None
    for number in range(given.rounds):
        sides = [("own", own), ("best", best)]
        for name, settings in sides if number % 2 == 0 else reversed(sides):
            row = measure(given, bench, settings, proves=name == "best" and number == 0)
            turns[name].append(row["goodput_rps"])
            parity = row.get("parity", parity)
    medians = {name: statistics.median(found) for name, found in turns.items()}
    gain = medians["best"] / medians["own"] if medians["own"] else None
    print(f"best: {describe_settings(best)}; in turns {turns}; gain {gain}; parity {parity}")
    return {"rows": rows, "best": best, "turns": turns, "gain": gain, "parity": parity}


def measure(
    given: argparse.Namespace, bench: Bench, settings: Settings, *, proves: bool = False
) -> dict[str, Any]:
    """Return the goodput of one server under a closed loop, and print it as a row.

    A server that does not start, or dies, has a goodput of 0.
    """
    began_s = time.monotonic()
    row: dict[str, Any] = {"settings": dict(settings), "goodput_rps": 0.0}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with bench.open(settings, math.inf) as endpoint:
                row["start_s"] = round(time.monotonic() - began_s, 1)
                report = run_loadtest(
                    closed_loop(bench.config, given.streams, given.requests), endpoint,
                    Path(scratch) / "report", prompts=bench.prompts, inputs=bench.inputs(settings),
                )  # fmt: skip
                row["load"] = [round(load, 2) for load in os.getloadavg()]
                if proves:
                    proof = bench.prove(settings, endpoint, Path(scratch) / "parity")
                    row["parity"] = read_verdict(proof)
            (scenario,) = read_report(report.path).scenarios
        except TunelineError as error:
            row["problem"] = error.message.partition("\n")[0]
        else:
            row["goodput_rps"] = scenario.throughput.goodput_rps or 0.0
            row["requests_rps"] = scenario.throughput.succeeded_rps
            for name in ("ttft_s", "tpot_s", "e2e_s"):
                row[f"{name}_p90"] = scenario.latency[name].percentiles["p90"]
    row["total_s"] = round(time.monotonic() - began_s, 1)
    print(f"{row['goodput_rps']:7.2f} good requests/s: {describe_settings(settings)}", row,
          flush=True)  # fmt: skip
    return row


def closed_loop(config: LoadTestConfig, streams: int, num_requests: int) -> LoadTestConfig:
    """Return the run's load test with one closed loop, and its objectives as limits of each
    request."""
    limits = {
        f"goodput_{metric}": min(values.values())
        for metric, values in config.slo.latency.items()
        if metric in ("ttft_s", "tpot_s", "e2e_s")
    }
    slo = SLO.model_validate(limits)
    scenario = Scenario(name="closed", concurrency=streams, num_requests=num_requests)
    return config.model_copy(update={"scenarios": [scenario], "slo": slo})


if __name__ == "__main__":
    main()
