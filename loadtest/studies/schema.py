"""`report.json` of the studies as types: search, sweep and comparison."""

from __future__ import annotations

from typing import Any, Literal

from loadtest.config import SLO
from loadtest.report.schema import EndpointReport, Part, ScenarioReport, SchemaVersion
from tuneline.core.artifact import Input
from tuneline.core.verdict import Verdict

Side = Literal["a", "b"]
SIDES: tuple[Side, ...] = ("a", "b")

METRICS = ("ttft_s", "tpot_s", "e2e_s")
"""The metrics that studies follow."""


class Probe(Part):
    """One rate of a search or a sweep."""

    rate_rps: float
    verdict: Verdict
    stopped_early: bool
    num_requests: int
    latency: dict[str, dict[str, float | None]]
    """Percentiles by metric, seconds: `{ttft_s: {p90: 0.2}}`."""
    output_tokens_per_s: float | None
    error_rate: float
    problems: list[str]
    num_needed: int | None = None
    """Requests that a verdict needs, where too few are why it is INCONCLUSIVE."""
    is_too_low: bool = False
    """Only a floor of throughput was missed, and the endpoint kept up."""


class Capacity(Part):
    """What to plan a replica for."""

    rate_per_replica_rps: float | None
    share_of_max: float
    peak_rps: float | None
    replicas: int | None


class SearchReport(Part):
    """`report.json` of an artifact of kind `load-search`."""

    schema_version: SchemaVersion
    verdict: Verdict
    problems: list[str]
    endpoint: EndpointReport
    inputs: list[Input]
    slo: SLO
    max_rate_rps: float | None
    """The highest rate that held twice."""
    lowest_failing_rate_rps: float | None
    highest_passed_rps: float | None
    confirmed: bool
    num_confirmations: int
    interval_confidence: float
    precision: float | None
    """Distance of the failing rate from the result, as a share of the result."""
    limited_by: Literal["objectives", "num_requests", "max_rate"] | None
    """Why no higher rate is reported."""
    capacity: Capacity
    probes: list[Probe]
    environment: dict[str, Any]


class SweepReport(Part):
    """`report.json` of an artifact of kind `load-sweep`."""

    schema_version: SchemaVersion
    verdict: Verdict
    """The worst of the rates."""
    problems: list[str]
    endpoint: EndpointReport
    inputs: list[Input]
    scenarios: list[ScenarioReport]
    probes: list[Probe]
    environment: dict[str, Any]


class Difference(Part):
    """B minus A of one metric, over requests that both answered."""

    metric: str
    unit: str
    num_pairs: int
    mean_a: float
    mean_b: float
    difference: float
    """Mean paired difference, B minus A."""
    ci95_low: float
    ci95_high: float
    verdict: Literal["slower", "faster", "no difference", "unclear"]
    """`slower` and `faster`: the 95 % interval lies outside the margin around 0. `no difference`:
    it does not reach beyond the margin on the slower side. `unclear`: it does."""
    num_needed: int | None = None
    """Pairs that a verdict needs at least, where too few are why it is unclear."""


class ComparedScenario(Part):
    """One scenario on both sides."""

    name: str
    differences: list[Difference]
    answer_tokens: tuple[float, float] | None
    """Mean output tokens of A and of B, of the requests that both answered."""
    runs: dict[Side, list[ScenarioReport]]


class ComparisonReport(Part):
    """`report.json` of an artifact of kind `load-comparison`."""

    schema_version: SchemaVersion
    verdict: Verdict
    problems: list[str]
    margin: float
    interleaved: bool
    """Whether the two sides were measured in turns."""
    endpoints: dict[Side, EndpointReport]
    scenarios: list[ComparedScenario]
    environment: dict[str, Any]
