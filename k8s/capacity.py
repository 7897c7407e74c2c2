"""The load that one pod was measured to carry, and the numbers that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from k8s.config import Autoscaling
from tuneline.core.digests import short_digest

# Bursts often come back within minutes. With Kubernetes' own 300 s, the pods of one are gone when
# the next one comes (benchmarks/autoscale.py, a recorded trace of requests for code).
LEAST_PAUSE_S = 450
# Kubernetes takes no longer pause (`stabilizationWindowSeconds`).
MOST_PAUSE_S = 3600
# A rule waits for so many starts of a pod: one is on its way, and the next may be needed.
PAUSE_STARTS = 4
STEP = 5
"""The autoscaler's policies allow 400 % more pods in one step."""
LEAST_ADMITTED = 16
"""Requests at once that every pod takes: short bursts pass a small mean."""


LATENCIES = ("ttft_s", "tpot_s", "e2e_s")


@dataclass(frozen=True)
class Derived:
    """A number and the formula that it comes from."""

    value: float
    formula: str

    @property
    def text(self) -> str:
        """Return the number as Kubernetes and Prometheus read it."""
        return f"{self.value:.6g}"


@dataclass(frozen=True)
class Objective:
    """A latency objective of the load test: a percentile and its limit in seconds."""

    percentile: float
    limit_s: float


@dataclass(frozen=True)
class Capacity:
    """The load of the fastest scenario in which every objective held, by one pod."""

    report: str
    """The digest of the load report."""
    scenario: str
    rate_rps: float
    in_flight: float
    objectives: Mapping[str, Objective] = field(default_factory=dict)
    """By metric: `ttft_s`, `tpot_s`, or `e2e_s` if the load test has neither of them."""
    loop: str = "open"
    """`open` or `closed`. A closed loop waits for answers, so it shows no queue."""
    concurrency: int = 0
    """The most requests at once that a closed loop kept up in a scenario with the verdict PASS."""
    hardware: str = ""
    """The machine of the client; of the server too if both are one."""

    def in_flight_per_pod(self, headroom: float) -> Derived:
        """Return the requests in flight that one pod gets before another pod is added."""
        value = max(1.0, round(headroom * self.in_flight, 1))
        return Derived(
            value,
            f"max(1, headroom {headroom:g} x {self.in_flight:.4g} requests in flight at "
            f"{self.rate_rps:.4g} requests/s), {self.origin}",
        )

    def admitted_per_pod(self, headroom: float) -> Derived:
        """Return the requests in flight from which a pod of an autoscaled server refuses one more.

        A longer queue outlasts the start of the pods that it asks for. A shorter one hides a load
        for which the autoscaler's largest step is needed.
        """
        target = self.in_flight_per_pod(headroom).value
        patience_s = self.objectives["ttft_s"].limit_s if "ttft_s" in self.objectives else 0.0
        value = float(
            max(
                LEAST_ADMITTED,
                self.concurrency,
                math.ceil(STEP * target),
                math.ceil(self.in_flight + self.rate_rps * patience_s),
            )
        )
        return Derived(
            value,
            f"the largest of {LEAST_ADMITTED}, {STEP} x the target of {target:g}, "
            f"{self.in_flight:.4g} requests in flight + {self.rate_rps:.4g} requests/s x "
            f"{patience_s:g} s of TTFT, and {self.concurrency} of a closed loop, {self.origin}",
        )

    def queue_per_pod(self) -> Derived:
        """Return the requests in flight per pod from which an objective is in danger."""
        value = float(math.ceil(2 * max(1.0, self.in_flight)))
        return Derived(
            value,
            f"2 x {self.in_flight:.4g} requests in flight at {self.rate_rps:.4g} requests/s, "
            f"{self.origin}",
        )

    @property
    def origin(self) -> str:
        """Return where the figures were measured."""
        client = f", client on {self.hardware}" if self.hardware else ""
        report = short_digest(self.report)
        return f"{self.loop}-loop scenario {self.scenario} of load report {report}{client}"


def pause_s(scaling: Autoscaling) -> Derived:
    """Return the seconds for which the load must be lower before a pod is taken away."""
    starts_s = math.ceil(PAUSE_STARTS * scaling.ready_s)
    value = float(min(MOST_PAUSE_S, max(LEAST_PAUSE_S, starts_s)))
    formula = f"max({LEAST_PAUSE_S} s, {PAUSE_STARTS} x {scaling.ready_s:g} s until a pod serves)"
    if starts_s > MOST_PAUSE_S:
        formula += f", at most {MOST_PAUSE_S} s"
    return Derived(value, formula)


def read_capacity(report: Mapping[str, Any], digest: str) -> Capacity | None:
    """Return what a load report says about one pod; None if no scenario has the verdict PASS.

    Args:
        report: `report.json` of an artifact of kind `load-report`.
        digest: The artifact's digest.
    """
    found = None
    passed = [scenario for scenario in report["scenarios"] if scenario["verdict"] == "PASS"]
    concurrency = max((one["config"]["concurrency"] or 0 for one in passed), default=0)
    for scenario in passed:
        rate_rps = scenario["throughput"]["succeeded_rps"]
        in_flight = scenario["mean_in_flight"]
        if not rate_rps or not in_flight:
            continue
        if found is None or rate_rps > found.rate_rps:
            given = [metric for metric in LATENCIES if scenario["slo"].get(metric)]
            # The time of a whole text depends on its length; vectors and scores have no other.
            named = [metric for metric in given if metric != "e2e_s"] or given
            objectives = {metric: _strictest(scenario["slo"][metric]) for metric in named}
            loop = "open" if scenario["config"]["concurrency"] is None else "closed"
            found = Capacity(
                digest, scenario["name"], rate_rps, in_flight, objectives, loop, concurrency,
                _hardware(report),
            )  # fmt: skip
    return found


def _hardware(report: Mapping[str, Any]) -> str:
    """Return the machine that a load report was written on, in words."""
    facts = report["environment"]["hardware"]
    gpus = ", ".join(facts["gpus"])
    return f"{facts['cpu']}, {facts['cpu_cores']} cores" + (f", {gpus}" if gpus else "")


def _strictest(limits: Mapping[str, float]) -> Objective:
    """Return the objective at p90, or else at the percentile that is nearest to it."""
    name = min(limits, key=lambda name: (abs(float(name[1:]) - 90), name))
    return Objective(float(name[1:]), limits[name])
