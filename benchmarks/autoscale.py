"""Simulate the rendered autoscaler against three loads: `python benchmarks/autoscale.py`.

A fluid model of one second per step. A pod serves `rate_rps` and takes `ready_s` to start; requests
beyond the rate of all serving pods wait, first come, first served. The requests in flight of a pod
are those of the load test at the served share of its rate, and those that wait. With the rendered
limit of requests in flight, one more is refused and counts as late. The objective holds in a minute
if 90 % of the requests that arrive in it wait at most `limit_s`.

The autoscaler is the HorizontalPodAutoscaler's own rule every 15 s, on a metric as old as a scrape:
desired = ceil(sum / target), no change within 10 %, at most the pods that the policies allow, and
the largest wish of the pause before pods are taken away. Policies and scrape interval are those of
k8s/manifests/components and, as `kubernetes`, the defaults of Kubernetes with a scrape every 15 s.

The loads: a day (a sine from 10 % to 100 % of the peak), three hours with ten minutes of five times
the load, and three hours of a slow ramp, each with noise of 5 %. The spike begins at each fifth
second of a minute; its row is the mean of the twelve. `--recorded FILE` adds a trace of arrivals, a
CSV file whose column TIMESTAMP has one date and time for each request. Its busiest minute is the
peak.

The oracle knows the load of the next `ready_s` and runs the fewest pods that carry it. The way `no
foresight` bounds every autoscaler without that knowledge: it knows the load of the present second,
asks for its pods at once, at most `max_replicas`, takes none away, and refuses just the requests
that would wait.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
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
    limits: bool = False
    """With the rendered limit of requests in flight."""


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


TRACES: dict[str, tuple[Callable[[float, int, int], list[float]], Sequence[int]]] = {
    "day": (day, (0,)),
    "spike": (spike, range(0, MINUTE, 5)),
    "ramp": (ramp, (0,)),
}


def recorded(path: Path, peak_rps: float) -> list[float]:
    """Return the load of a recorded trace, scaled so that its busiest minute has the peak's rate.

    Args:
        path: A CSV file; its column TIMESTAMP has one date and time for each request.
        peak_rps: Requests per second in the busiest minute.
    """
    with path.open(encoding="utf-8") as file:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in csv.DictReader(file)]
    begin = min(times)
    counts = Counter(int((at - begin).total_seconds()) for at in times)
    found = [float(counts[second]) for second in range(max(counts) + 1)]
    busiest = max(sum(found[start : start + MINUTE]) for start in range(0, len(found), MINUTE))
    return [rate * peak_rps * MINUTE / busiest for rate in found]


def rendered() -> Way:
    """Return the way of the rendered manifests."""
    item = yaml.safe_load((COMPONENTS / "hpa" / "autoscaler.yaml").read_text())
    behavior = item["spec"]["behavior"]
    up, down = (behavior[name]["policies"] for name in ("scaleUp", "scaleDown"))
    return Way("rendered", up, down, SCALED_INTERVAL_S, limits=True)


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
    most = capacity.admitted_per_pod(scaling.headroom).value if way.limits else math.inf
    waiting, total = 0.0, 0
    seen: deque[float] = deque(maxlen=way.metric_age_s + 1)
    answered: list[float] = []
    refused: list[float] = []
    for t, rate in enumerate(load):
        serving = sum(at <= t for at in ready_at)
        can = serving * capacity.rate_rps
        done = min(can, waiting + rate)
        running = serving * capacity.in_flight * (min(1.0, rate / can) if can else 0.0)
        room = max(0.0, serving * most - running) if serving else 0.0
        refused.append(max(0.0, waiting + rate - done - room))
        waiting += rate - done - refused[-1]
        answered.append((answered[-1] if answered else 0.0) + done)
        seen.append(running + waiting)
        total += len(ready_at)
        if fixed is None and t % SYNC_S == 0:
            wish = scaler.decide(t, len(ready_at), seen[0])
            ready_at += [t + scaling.ready_s] * (wish - len(ready_at))
            ready_at = sorted(ready_at)[:wish]
    return Outcome(_kept(load, _late(load, refused, answered, limit_s)), total / len(load))


def _late(
    load: Sequence[float], refused: Sequence[float], answered: Sequence[float], limit_s: float
) -> list[float]:
    """Return the requests of each second that are refused or wait longer than `limit_s`.

    Args:
        load: The requests that arrive in each second.
        refused: Those of them that are refused.
        answered: The requests that are answered by the end of each second.
        limit_s: The wait that still meets the objective.
    """
    admitted, begun = 0.0, 0
    late = []
    for t, (rate, gone) in enumerate(zip(load, refused, strict=True)):
        admitted += rate - gone
        while begun < len(load) and answered[begun] < admitted - 1e-6:
            begun += 1
        late.append(rate if begun - t > limit_s else gone)
    return late


def _kept(load: Sequence[float], late: Sequence[float]) -> float:
    """Return the share of minutes in which at most 10 % of the requests are late."""
    starts = range(0, len(load), MINUTE)
    kept = [
        sum(late[start : start + MINUTE]) <= (1 - LEAST_SHARE) * sum(load[start : start + MINUTE])
        for start in starts
    ]
    return sum(kept) / len(kept)


def without_foresight(load: Sequence[float], capacity: Capacity, scaling: Autoscaling) -> Outcome:
    """Return the outcome of an autoscaler that knows all but the future.

    It sees each second's load in that second and asks for its pods at once, with the headroom. It
    takes none away, and refuses just the requests that would wait.
    """
    pods: list[int] = []
    late = []
    for t, rate in enumerate(load):
        wanted = math.ceil(rate / capacity.rate_rps / scaling.headroom)
        wanted = min(max(scaling.min_replicas, wanted), scaling.max_replicas)
        pods.append(max(wanted, pods[-1]) if pods else wanted)
        serving = pods[max(0, t - int(scaling.ready_s))]
        late.append(max(0.0, rate - serving * capacity.rate_rps))
    return Outcome(_kept(load, late), _mean(pods))


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
    parser.add_argument("--traces", nargs="*", choices=TRACES, default=list(TRACES))
    parser.add_argument("--recorded", type=Path, nargs="*", default=[], help="CSV files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    capacity = Capacity(NO_REPORT, "given", options.rate, options.in_flight)
    peak_rps = options.rate * options.peak_pods
    traces = {path.stem: [recorded(path, peak_rps)] for path in options.recorded}
    for name in options.traces:
        make, seconds = TRACES[name]
        traces[name] = [make(peak_rps, options.seed, second) for second in seconds]
    for name, loads in traces.items():
        for ready_s in options.ready_s:
            for headroom in options.headroom:
                for least in options.min_pods:
                    scaling = Autoscaling(
                        by="hpa", min_replicas=least, max_replicas=options.max_pods,
                        headroom=headroom, ready_s=ready_s,
                    )  # fmt: skip
                    for row in _rows(loads, capacity, scaling, options.limit_s):
                        setting = {"ready_s": ready_s, "headroom": headroom, "min_pods": least}
                        print(json.dumps({"trace": name, **setting, **row}))


def _rows(
    loads: Sequence[list[float]], capacity: Capacity, scaling: Autoscaling, limit_s: float
) -> list[dict[str, Any]]:
    """Return one row for each way, and one of the bound."""
    ours = rendered()
    ways = (
        Way("kubernetes", DEFAULT_UP, ours.down, 15),
        replace(ours, name="no limit", limits=False),
        ours,
    )
    best = _mean([oracle(load, capacity, scaling.ready_s) for load in loads])
    rows: list[dict[str, Any]] = []
    for way in ways:
        found = _over([simulate(load, capacity, scaling, limit_s, way) for load in loads])
        fixed = math.ceil(found.pods)
        still = _over([simulate(load, capacity, scaling, limit_s, way, fixed) for load in loads])
        rows.append(
            {
                "way": way.name, "kept": round(found.kept, 4), "pods": round(found.pods, 2),
                "over_oracle": round(found.pods / best, 2), "fixed_kept": round(still.kept, 4),
            }
        )  # fmt: skip
    bound = _over([without_foresight(load, capacity, scaling) for load in loads])
    return [*rows, {"way": "no foresight", "kept": round(bound.kept, 4)}]


def _over(found: Sequence[Outcome]) -> Outcome:
    """Return the mean outcome of several loads."""
    return Outcome(_mean([one.kept for one in found]), _mean([one.pods for one in found]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
