# ruff: noqa: E402
"""How often an objective is judged rightly on queues: `python benchmarks/intervals.py`.

Simulates M/M/k queues, whose percentiles are known from Erlang's formula, and judges p90 of the
time in the system as a load test does. Prints the shares of runs that pass and that fail an
objective which lies exactly at the truth (at most 0.025 of each are meant), that pass one at 1.5
times the truth, and that fail one at two thirds of it; then the shares of runs whose bootstrap
interval holds the truth and whose does not (the rest get none). One JSON document on the last line.
The seed is fixed.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import sys
from pathlib import Path

import numpy as np

# The script loadtest.py in this folder would hide the package of that name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from loadtest.judging.intervals import Values, block_length
from loadtest.judging.latency import distribution, share_of
from loadtest.judging.objectives import latency_objective

QUEUES = ((1, 0.5), (8, 0.7), (4, 0.8), (1, 0.8), (8, 0.9))
RUNS = {300: 100, 3_000: 60, 10_000: 30}
"""Runs of each number of requests."""
SEED = 17
NUM_WARMUP = 2_000


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    print(f"seed {SEED}")
    found = []
    for servers, load in QUEUES:
        for count, runs in RUNS.items():
            measured = shares(servers, load, count, runs)
            found.append(
                {"servers": servers, "load": load, "num_requests": count, "num_runs": runs,
                 **measured}
            )  # fmt: skip
            row = ", ".join(f"{name} {share:.2f}" for name, share in measured.items())
            print(f"M/M/{servers} {load}, {count:6,}: {row}", flush=True)
    print(json.dumps(found))


def shares(servers: int, load: float, count: int, runs: int) -> dict[str, float]:
    """Of the runs."""
    rng = np.random.default_rng(SEED)
    truth = true_p90(servers, load)
    names = ("pass_at_truth", "fail_at_truth", "pass_at_1.5", "fail_at_0.67", "right", "wrong")
    found = dict.fromkeys(names, 0)
    for _ in range(runs):
        values = times_in_system(rng, count, servers, load)
        # Little's law gives the mean number in the system.
        block = block_length(float(values.mean()) * load * servers)
        at_truth = judged(values, truth, block)
        found["pass_at_truth"] += at_truth == "PASS"
        found["fail_at_truth"] += at_truth == "FAIL"
        found["pass_at_1.5"] += judged(values, 1.5 * truth, block) == "PASS"
        found["fail_at_0.67"] += judged(values, truth / 1.5, block) == "FAIL"
        bounds = distribution(values, block=block).ci95.get("p90")
        if bounds is not None:
            low, high = bounds
            holds = (low or 0.0) <= truth <= (math.inf if high is None else high)
            found["right" if holds else "wrong"] += 1
    return {name: number / runs for name, number in found.items()}


def judged(values: Values, limit: float, block: int) -> str:
    within = share_of(values <= limit, values, block=block)
    return latency_objective("e2e_s", 90, limit, distribution(values), within).verdict


def times_in_system(rng: np.random.Generator, count: int, servers: int, load: float) -> Values:
    """Of `count` requests in their order, in mean service times, once the queue is steady."""
    arrivals = np.cumsum(rng.exponential(1 / (load * servers), count + NUM_WARMUP)).tolist()
    services = rng.exponential(1, count + NUM_WARMUP).tolist()
    free = [0.0] * servers
    found = []
    for arrival, service in zip(arrivals, services, strict=True):
        end = max(arrival, free[0]) + service
        heapq.heapreplace(free, end)
        found.append(end - arrival)
    return np.array(found[NUM_WARMUP:])


def true_p90(servers: int, load: float) -> float:
    """Where the tail of the time in the system is 0.1, by Erlang's C."""
    offered = servers * load
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    waiting = blocked / (1 - load * (1 - blocked))
    spare = servers - 1 - offered
    low, high = 0.0, 200.0
    for _ in range(100):
        at = (low + high) / 2
        tail = math.exp(-at) * (1 + waiting * (1 - math.exp(-at * spare)) / spare)
        low, high = (at, high) if tail > 0.1 else (low, at)
    return low


if __name__ == "__main__":
    main()
