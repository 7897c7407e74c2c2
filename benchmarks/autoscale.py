"""Simulate the rendered autoscaler against three loads: `python benchmarks/autoscale.py`.

A fluid model of one second per step. A pod serves `rate_rps` and takes `ready_s` to start; requests
beyond the rate of all serving pods wait, first come, first served. The requests in flight of a pod
are those of the load test at the served share of its rate, and those that wait. The objective holds
in a minute if 90 % of the requests that arrive in it wait at most `limit_s`.

The autoscaler is the HorizontalPodAutoscaler's own rule every 15 s, on a metric as old as a scrape:
desired = ceil(sum / target), no change within 10 %, at most the pods that the policies allow, and
the largest wish of the pause before pods are taken away. Policies and scrape interval are those of
k8s/manifests/components and, as `kubernetes`, the defaults of Kubernetes with a scrape every 15 s.

The loads: a day (a sine from 10 % to 100 % of the peak), three hours with ten minutes of five times
the load, and three hours of a slow ramp, each with noise of 5 %. The spike begins at a minute, 20 s
and 40 s after it; its row is the mean of the three. The oracle knows the load of the next `ready_s`
and runs the fewest pods that carry it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from k8s.capacity import Capacity, pause_s
from k8s.config import Autoscaling
from k8s.render.components.monitoring import SCALED_INTERVAL_S

COMPONENTS = Path(__file__).parents[1] / "k8s" / "manifests" / "components"
SYNC_S = 15
TOLERANCE = 0.1
# The defaults of Kubernetes for a HorizontalPodAutoscaler.
DEFAULT_UP = (
    {"type": "Percent", "value": 100, "periodSeconds": 15},
    {"type": "Pods", "value": 4, "periodSeconds": 15},
)
MINUTE = 60
LEAST_SHARE = 0.9
NO_REPORT = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Way:
    """A way to scale: the policies of both directions and the age of the metric."""

    name: str
    up: Sequence[dict[str, Any]]
    down: Sequence[dict[str, Any]]
    metric_age_s: int


@dataclass(frozen=True)
class Outcome:
    """The minutes in which the objective held, and the pods that ran on average."""

    kept: float
    pods: float


@dataclass
class Autoscaler:
    """The HorizontalPodAutoscaler's rule, with the decisions that it remembers."""

    way: Way
    scaling: Autoscaling
    target: float
    wishes: deque[tuple[int, int]] = field(default_factory=deque)
    drops: deque[tuple[int, int]] = field(default_factory=deque)

    def decide(self, t: int, count: int, in_flight: float) -> int:
        """Return the number of pods from second `t` on."""
        is_near = abs(in_flight / (self.target * count) - 1) <= TOLERANCE
        wish = count if is_near else math.ceil(in_flight / self.target)
        wish = min(max(wish, self.scaling.min_replicas, 1), self.scaling.max_replicas)
        self.wishes.append((t, wish))
        while self.wishes[0][0] < t - pause_s(self.scaling).value:
            self.wishes.popleft()
        if wish > count:
            return min(wish, count + max(_step(policy, count) for policy in self.way.up))
        wish = min(count, max(other for _, other in self.wishes))
        while self.drops and self.drops[0][0] <= t - MINUTE:
            self.drops.popleft()
        gone = sum(number for _, number in self.drops)
        most = max(_step(policy, count + gone) for policy in self.way.down) - gone
        wish = max(wish, count - max(0, most))
        self.drops.append((t, count - wish))
        return wish


def _step(policy: dict[str, Any], count: int) -> int:
    """Return the pods that a policy adds to or takes from `count` in its period."""
    value = int(policy["value"])
    return value if policy["type"] == "Pods" else int(count * value / 100)


def day(peak_rps: float, seed: int, _second: int) -> list[float]:
    """Return a day's load: a sine from a tenth of the peak to the peak, with noise of 5 %."""
    draw, seconds = random.Random(seed), 24 * 3600
    level = [0.55 - 0.45 * math.cos(2 * math.pi * t / seconds) for t in range(seconds)]
    return [peak_rps * share * max(0.0, draw.gauss(1, 0.05)) for share in level]


def spike(peak_rps: float, seed: int, second: int) -> list[float]:
    """Return a steady load with ten minutes of five times as much, from `second` of a minute."""
    draw, seconds = random.Random(seed), 3 * 3600
    begin = seconds // 3 + second
    return [
        peak_rps * (1.0 if begin <= t < begin + 600 else 0.2) * max(0.0, draw.gauss(1, 0.05))
        for t in range(seconds)
    ]


def ramp(peak_rps: float, seed: int, _second: int) -> list[float]:
    """Return a load that rises from a tenth of the peak to the peak."""
    draw, seconds = random.Random(seed), 3 * 3600
    return [
        peak_rps * (0.1 + 0.9 * t / seconds) * max(0.0, draw.gauss(1, 0.05)) for t in range(seconds)
    ]


TRACES: dict[str, tuple[Callable[[float, int, int], list[float]], tuple[int, ...]]] = {
    "day": (day, (0,)),
    "spike": (spike, (0, 20, 40)),
    "ramp": (ramp, (0,)),
}


def rendered() -> Way:
    """Return the way of the rendered manifests."""
    item = yaml.safe_load((COMPONENTS / "hpa" / "autoscaler.yaml").read_text())
    behavior = item["spec"]["behavior"]
    up, down = (behavior[name]["policies"] for name in ("scaleUp", "scaleDown"))
    return Way("rendered", up, down, SCALED_INTERVAL_S)


def simulate(
    load: list[float],
    capacity: Capacity,
    scaling: Autoscaling,
    limit_s: float,
    way: Way,
    fixed: int | None = None,
) -> Outcome:
    """Run one trace against the autoscaler, or against a fixed number of pods.

    Args:
        load: Requests per second, one value a second.
        capacity: One pod's measured load.
        scaling: The section `k8s.autoscaling`.
        limit_s: The wait that still meets the objective.
        way: Policies and age of the metric.
        fixed: A number of pods, in place of the autoscaler.
    """
    scaler = Autoscaler(way, scaling, capacity.in_flight_per_pod(scaling.headroom).value)
    first = math.ceil(load[0] / capacity.rate_rps / scaling.headroom)
    ready_at = [0.0] * (fixed or max(scaling.min_replicas, first))
    waiting, total = 0.0, 0
    seen: deque[float] = deque(maxlen=way.metric_age_s + 1)
    answered: list[float] = []
    for t, rate in enumerate(load):
        serving = sum(at <= t for at in ready_at)
        can = serving * capacity.rate_rps
        done = min(can, waiting + rate)
        waiting += rate - done
        answered.append((answered[-1] if answered else 0.0) + done)
        busy = min(1.0, rate / can) if can else 0.0
        seen.append(serving * busy * capacity.in_flight + waiting)
        total += len(ready_at)
        if fixed is None and t % SYNC_S == 0:
            wish = scaler.decide(t, len(ready_at), seen[0])
            ready_at += [t + scaling.ready_s] * (wish - len(ready_at))
            ready_at = sorted(ready_at)[:wish]
    return Outcome(_kept(load, answered, limit_s), total / len(load))


def _kept(load: Sequence[float], answered: Sequence[float], limit_s: float) -> float:
    """Return the share of minutes in which 90 % of the requests wait at most `limit_s`.

    Args:
        load: The requests that arrive in each second.
        answered: The requests that are answered by the end of each second.
    """
    arrived, begun = 0.0, 0
    late = [0.0] * -(-len(load) // MINUTE)
    for t, rate in enumerate(load):
        arrived += rate
        while begun < len(load) and answered[begun] < arrived - 1e-6:
            begun += 1
        if begun - t > limit_s:
            late[t // MINUTE] += rate
    asked = [sum(load[start : start + MINUTE]) for start in range(0, len(load), MINUTE)]
    kept = [bad <= (1 - LEAST_SHARE) * all_ for bad, all_ in zip(late, asked, strict=True)]
    return sum(kept) / len(kept)


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
    """Print one row for each trace, time to ready and way of scaling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=8.0, help="requests/s of one pod")
    parser.add_argument("--in-flight", type=float, default=6.5, help="in flight at that rate")
    parser.add_argument("--ready-s", type=float, nargs="+", default=[60.0, 20.0])
    parser.add_argument("--limit-s", type=float, default=1.0, help="wait that meets the objective")
    parser.add_argument("--headroom", type=float, nargs="+", default=[0.8])
    parser.add_argument("--peak-pods", type=float, default=10.0, help="the peak, in pods")
    parser.add_argument("--min-pods", type=int, nargs="+", default=[1], help="min_replicas")
    parser.add_argument("--max-pods", type=int, default=20, help="max_replicas")
    parser.add_argument("--traces", nargs="+", choices=TRACES, default=list(TRACES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    capacity = Capacity(NO_REPORT, "given", options.rate, options.in_flight)
    ours = rendered()
    ways = (Way("kubernetes", DEFAULT_UP, ours.down, 15), ours)
    for name in options.traces:
        make, seconds = TRACES[name]
        loads = [make(options.rate * options.peak_pods, options.seed, s) for s in seconds]
        for ready_s in options.ready_s:
            best = _mean([oracle(load, capacity, ready_s) for load in loads])
            for headroom in options.headroom:
                for least in options.min_pods:
                    scaling = Autoscaling(
                        by="hpa", min_replicas=least, max_replicas=options.max_pods,
                        headroom=headroom, ready_s=ready_s,
                    )  # fmt: skip
                    for way in ways:
                        found = _over(loads, capacity, scaling, options.limit_s, way)
                        fixed = math.ceil(found.pods)
                        still = _over(loads, capacity, scaling, options.limit_s, way, fixed)
                        row = {
                            "trace": name, "ready_s": ready_s, "headroom": headroom,
                            "min_pods": least, "way": way.name, "kept": round(found.kept, 4),
                            "pods": round(found.pods, 2),
                            "over_oracle": round(found.pods / best, 2),
                            "fixed_kept": round(still.kept, 4),
                        }  # fmt: skip
                        print(json.dumps(row))


def _over(loads: Sequence[list[float]], *arguments: Any) -> Outcome:
    """Return the mean outcome of several loads."""
    found = [simulate(load, *arguments) for load in loads]
    return Outcome(_mean([one.kept for one in found]), _mean([one.pods for one in found]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
