"""Simulate the rendered autoscalers against three loads: `python benchmarks/autoscale.py`.

A fluid model of one second per step. A pod serves `rate_rps` and takes `ready_s` to start; requests
beyond the rate of all serving pods wait. The requests in flight of a pod are those of the load test
at the served share of its rate, and those that wait. TTFT rises by the wait: requests that wait,
divided by the rate of all serving pods. The objective holds in a minute if the TTFT of its last
second keeps to the limit.

The autoscaler is the HorizontalPodAutoscaler's own rule every 15 s, on a metric that is 15 s old:
desired = ceil(sum / target), no change within 10 %, at most twice the pods or four more in 15 s,
the largest wish of the pause before pods are taken away, and then a quarter of them per minute.

The loads: a day (a sine from 10 % to 100 % of the peak), three hours with ten minutes of five times
the load, and three hours of a slow ramp, each with noise of 5 %. The oracle knows the load of the
next `ready_s` and runs the fewest pods that carry it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from k8s.capacity import Capacity, pause_s
from k8s.config import Autoscaling

STEP_S = 15
METRIC_AGE_S = 15
TOLERANCE = 0.1
# The policies of k8s/manifests/components/hpa and keda.
UP_PODS = 4
DOWN_SHARE = 0.25


@dataclass(frozen=True)
class Outcome:
    """The minutes in which the objective held, and the pods that ran on average."""

    kept: float
    pods: float


def day(seconds: int, peak_rps: float, seed: int) -> list[float]:
    """Return a day's load: a sine from a tenth of the peak to the peak, with noise of 5 %."""
    draw = random.Random(seed)
    level = [0.55 - 0.45 * math.cos(2 * math.pi * t / seconds) for t in range(seconds)]
    return [peak_rps * share * max(0.0, draw.gauss(1, 0.05)) for share in level]


def spike(seconds: int, peak_rps: float, seed: int) -> list[float]:
    """Return a steady load with ten minutes of five times as much."""
    draw = random.Random(seed)
    begin, end = seconds // 3, seconds // 3 + 600
    return [
        peak_rps * (1.0 if begin <= t < end else 0.2) * max(0.0, draw.gauss(1, 0.05))
        for t in range(seconds)
    ]


def ramp(seconds: int, peak_rps: float, seed: int) -> list[float]:
    """Return a load that rises from a tenth of the peak to the peak."""
    draw = random.Random(seed)
    return [
        peak_rps * (0.1 + 0.9 * t / seconds) * max(0.0, draw.gauss(1, 0.05)) for t in range(seconds)
    ]


TRACES: dict[str, tuple[Callable[[int, float, int], list[float]], int]] = {
    "day": (day, 24 * 3600),
    "spike": (spike, 3 * 3600),
    "ramp": (ramp, 3 * 3600),
}


def simulate(
    load: list[float], capacity: Capacity, scaling: Autoscaling, limit_s: float, fixed: int | None
) -> Outcome:
    """Run one trace against the autoscaler, or against a fixed number of pods.

    Args:
        load: Requests per second, one value a second.
        capacity: One pod's measured load.
        scaling: The section `k8s.autoscaling`.
        limit_s: The wait that still meets the objective.
        fixed: A number of pods, in place of the autoscaler.
    """
    target = capacity.in_flight_per_pod(scaling.headroom).value
    pause = pause_s(scaling).value
    pods = fixed or max(scaling.min_replicas, math.ceil(load[0] / capacity.rate_rps / 0.8))
    ready_at = [0.0] * pods
    waiting, kept, minutes, total = 0.0, 0, 0, 0
    seen: deque[float] = deque(maxlen=METRIC_AGE_S + 1)
    wishes: deque[tuple[int, int]] = deque()
    drops: deque[tuple[int, int]] = deque()
    for t, rate in enumerate(load):
        serving = sum(at <= t for at in ready_at)
        can = serving * capacity.rate_rps
        waiting = max(0.0, waiting + rate - can)
        served = min(1.0, rate / can) if can else 0.0
        in_flight = serving * served * capacity.in_flight + waiting
        seen.append(in_flight)
        total += len(ready_at)
        if t % 60 == 59:
            minutes += 1
            kept += bool(can) and waiting / can <= limit_s
        if fixed is None and t % STEP_S == 0:
            count = len(ready_at)
            ratio = seen[0] / (target * count)
            wish = count if abs(ratio - 1) <= TOLERANCE else math.ceil(seen[0] / target)
            wish = min(max(wish, scaling.min_replicas, 1), scaling.max_replicas)
            wishes.append((t, wish))
            while wishes[0][0] < t - pause:
                wishes.popleft()
            if wish > count:
                wish = min(wish, count + max(count, UP_PODS))
            else:
                # The largest wish of the pause; then a quarter of the pods a minute, at least one.
                wish = min(count, max(other for _, other in wishes))
                while drops and drops[0][0] <= t - 60:
                    drops.popleft()
                gone = sum(number for _, number in drops)
                wish = max(wish, count - max(0, max(1, int(DOWN_SHARE * (count + gone))) - gone))
                drops.append((t, count - wish))
            ready_at += [t + scaling.ready_s] * (wish - count)
            ready_at = sorted(ready_at)[:wish]
    return Outcome(kept / minutes, total / len(load))


def oracle(load: list[float], capacity: Capacity, ready_s: float) -> float:
    """Return the pods of an autoscaler that knows the load until a new pod serves, on average."""
    window = int(ready_s)
    needed = [math.ceil(rate / capacity.rate_rps) for rate in load]
    largest: deque[int] = deque()
    total = 0
    for t in range(len(load) - 1, -1, -1):
        while largest and needed[largest[-1]] <= needed[t]:
            largest.pop()
        largest.append(t)
        while largest[0] > t + window:
            largest.popleft()
        total += needed[largest[0]]
    return total / len(load)


def main() -> None:
    """Print one row for each trace and way of scaling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=8.0, help="requests/s of one pod")
    parser.add_argument("--in-flight", type=float, default=6.5, help="in flight at that rate")
    parser.add_argument("--ready-s", type=float, default=60.0)
    parser.add_argument("--limit-s", type=float, default=1.0, help="wait that meets the objective")
    parser.add_argument("--headroom", type=float, nargs="+", default=[0.6, 0.8])
    parser.add_argument("--peak-pods", type=float, default=10.0, help="the peak, in pods")
    parser.add_argument("--max-pods", type=int, default=20, help="k8s.autoscaling.max_replicas")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    capacity = Capacity("sha256:" + "0" * 64, "given", options.rate, options.in_flight)
    for name, (make, seconds) in TRACES.items():
        load = make(seconds, options.rate * options.peak_pods, options.seed)
        best = oracle(load, capacity, options.ready_s)
        for headroom in options.headroom:
            scaling = Autoscaling(
                by="hpa", max_replicas=options.max_pods, headroom=headroom, ready_s=options.ready_s
            )
            found = simulate(load, capacity, scaling, options.limit_s, None)
            fixed = simulate(load, capacity, scaling, options.limit_s, math.ceil(found.pods))
            row = {
                "trace": name, "headroom": headroom, "kept": round(found.kept, 4),
                "pods": round(found.pods, 2), "over_oracle": round(found.pods / best, 2),
                "fixed_kept": round(fixed.kept, 4),
                "fixed_over_oracle": round(fixed.pods / best, 2),
            }  # fmt: skip
            print(json.dumps(row))


if __name__ == "__main__":
    main()
