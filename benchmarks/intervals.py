# ruff: noqa: E402
"""How often a percentile's interval holds the truth on queues: `python benchmarks/intervals.py`.

Simulates M/M/k queues, whose percentiles are known from Erlang's formula, and takes the interval of
p90 of the time in the system as a load test does. Prints the shares of runs whose interval holds
the truth and whose does not (the rest get none), and how often a run would pass an objective that
lies at the truth, then one JSON document on the last line. The seed is fixed.
"""

from __future__ import annotations

import heapq
import json
import math
import sys
from pathlib import Path

import numpy as np

# The script beside this one, loadtest.py, hides the package of that name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from loadtest.intervals import Values, block_length, lies_below
from loadtest.statistics import figure

QUEUES = ((1, 0.5), (8, 0.7), (4, 0.8), (1, 0.8), (8, 0.9))
RUNS = {300: 100, 3_000: 60, 10_000: 30}
"""Runs of each number of requests."""
SEED = 17
NUM_WARMUP = 2_000


def main() -> None:
    print(f"seed {SEED}; p90: right, wrong, passes at the limit")
    found = []
    for servers, load in QUEUES:
        for count, runs in RUNS.items():
            right, wrong, passed = shares(servers, load, count, runs)
            found.append(
                {"servers": servers, "load": load, "num_requests": count, "num_runs": runs,
                 "right": right, "wrong": wrong, "passed_at_limit": passed}
            )  # fmt: skip
            print(f"M/M/{servers} {load}, {count:6,}: {right:.2f}, {wrong:.2f}, {passed:.2f}")
    print(json.dumps(found))


def shares(servers: int, load: float, count: int, runs: int) -> tuple[float, float, float]:
    rng = np.random.default_rng(SEED)
    truth = true_p90(servers, load)
    right = wrong = passed = 0
    for _ in range(runs):
        values = times_in_system(rng, count, servers, load)
        # Little's law gives the mean number in the system.
        block = block_length(float(values.mean()) * load * servers)
        measured = figure(values, block=block)
        bounds = measured.ci95.get("p90")
        if bounds is None:
            passed += lies_below(measured.p90 or 0.0, truth, 90, measured.num_independent or 1)
            continue
        low, high = bounds
        holds = (low or 0.0) <= truth <= (math.inf if high is None else high)
        right, wrong = right + holds, wrong + (not holds)
        passed += high is not None and high <= truth
    return right / runs, wrong / runs, passed / runs


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
