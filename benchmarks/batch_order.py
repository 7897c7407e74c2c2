"""Compare the two orders of training rows on the example: `python benchmarks/batch_order.py`.

For each seed, the line trains the shipped tickets as examples/support-tickets/run.yaml says, once
for each value of `training.train_sampling_strategy`, and scores the held-out tickets. The figures
of an order are medians over the seeds, with the lowest and the highest. Prints a table for people,
then one JSON document on the last line. Two orders and four seeds take about ten minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tuneline.core.artifact import open_artifact
from tuneline.core.environment import hardware_facts

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "support-tickets"
ORDERS = ("group_by_length", "random")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    seeds = parser.parse_args().seeds
    found: dict[str, list[dict[str, Any]]] = {order: [] for order in ORDERS}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            for order in ORDERS:
                run = train_and_score(order, seed, Path(scratch) / f"{order}-{seed}")
                found[order].append(run)
                print(order, seed, run, file=sys.stderr)
    print("order             held-out loss           exact match             trained tokens/s")
    for order, runs in found.items():
        cells = [spread([run[key] for run in runs]) for key in ("loss", "match", "tokens_per_s")]
        print(f"{order:17} {cells[0]:23} {cells[1]:23} {cells[2]}")
    print(json.dumps({"hardware": hardware_facts(), "seeds": seeds, **found}))


def train_and_score(order: str, seed: int, out: Path) -> dict[str, Any]:
    """Train by the command line, and return the figures of its manifest and of its evaluation."""
    runs = out / "runs"
    settings = {
        "training.train_sampling_strategy": order, "training.seed": seed,
        "reference.num_prompts": 1, "reference.max_new_tokens": 1,
    }  # fmt: skip
    choices = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    tuneline("train", EXAMPLE / "run.yaml", "--runs-dir", runs, *choices)
    (adapter,) = (runs / "support-tickets").glob("adapter-*")
    (dataset,) = (runs / "support-tickets").glob("dataset-*")
    tuneline(
        "evaluate", "--model", "tiny-base", "--adapter", adapter, "--out", out / "scores",
        "--data", dataset / "heldout.jsonl", "--set", "evaluation.max_new_tokens=64",
    )  # fmt: skip
    metrics = open_artifact(adapter).manifest.metrics
    (scores,) = (out / "scores").rglob("evaluation.json")
    return {
        "seed": seed,
        "loss": metrics["eval_loss"],
        "match": json.loads(scores.read_text())["exact_match"],
        "tokens_per_s": metrics["trained_tokens_per_s"],
    }


def tuneline(*words: str | Path) -> None:
    command = [sys.executable, "-m", "tuneline", *map(str, words)]
    subprocess.run(command, stdout=sys.stderr, check=True)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


if __name__ == "__main__":
    main()
