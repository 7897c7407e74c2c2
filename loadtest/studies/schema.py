"""`report.json` of the studies as types: search, sweep and comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from loadtest.config import SLO
from loadtest.report.part import Part
from loadtest.report.schema import EndpointReport, ScenarioReport, SchemaVersion
from loadtest.studies.load import Arrivals, Axis
from tuneline.core.artifact import Input
from tuneline.core.verdict import Verdict

Side = Literal["a", "b"]
SIDES: tuple[Side, ...] = ("a", "b")

METRICS = ("ttft_s", "tpot_s", "e2e_s")
"""The metrics that studies follow."""


class Probe(Part):
    """One load of a search or a sweep: a rate or a number of streams."""

    rate_rps: float | None
    concurrency: int | None = None
    """Streams at once, in a closed loop."""
    verdict: Verdict
    stopped_early: bool
    num_requests: int
    latency: dict[str, dict[str, float | None]]
    """Percentiles by metric, seconds: `{ttft_s: {p90: 0.2}}`."""
    output_tokens_per_s: float | None
    succeeded_rps: float | None = None
    """Requests that succeeded, per second."""
    mean_e2e_s: float | None = None
    """Mean end-to-end latency of the succeeded requests."""
    mean_e2e_s_ci95: tuple[float, float] | None = None
    error_rate: float
    problems: list[str]
    num_needed: int | None = None
    """Requests that a verdict needs, if too few are why it is INCONCLUSIVE."""
    is_too_low: bool = False
    """Only a floor of throughput was missed, and the endpoint kept up."""

    @property
    def load(self) -> float:
        """The rate of arrivals per second, or the number of streams."""
        return self.rate_rps if self.rate_rps is not None else float(self.concurrency or 0)


def have_tokens(probes: Sequence[Probe]) -> bool:
    """Return whether answers are streams of tokens, not documents with vectors or scores."""
    return any(probe.output_tokens_per_s for probe in probes)


class Capacity(Part):
    """What to plan a replica for."""

    rate_per_replica_rps: float | None
    share_of_max: float
    peak_rps: float | None
    replicas: int | None


class Knee(Part):
    """The number of streams with the greatest power: throughput divided by response time."""

    concurrency: int
    low: int
    """The fewest streams whose power may be as great, by the 95 % intervals."""
    high: int | None
    """The most such streams; null if these are the most that were measured."""
    mean_e2e_s: float
    output_tokens_per_s: float | None


class SearchReport(Part):
    """`report.json` of an artifact of kind `load-search`."""

    schema_version: SchemaVersion
    verdict: Verdict
    problems: list[str]
    endpoint: EndpointReport
    inputs: list[Input]
    slo: SLO
    axis: Axis = "rate"
    """Whether the search varied the rate or the streams at once."""
    arrivals: Arrivals = "requests"
    """The unit of the rate and the streams: with `workload.sessions`, conversations."""
    max_rate_rps: float | None
    """The highest rate that held twice."""
    lowest_failing_rate_rps: float | None
    highest_passed_rps: float | None
    max_concurrency: int | None = None
    """The most streams that held twice."""
    lowest_failing_concurrency: int | None = None
    highest_passed_concurrency: int | None = None
    knee: Knee | None = None
    confirmed: bool
    num_confirmations: int
    interval_confidence: float
    precision: float | None
    """Distance of the failing rate from the result, as a share of the result."""
    limited_by: (
        Literal["objectives", "num_requests", "max_rate", "max_concurrency", "time_limit"] | None
    )
    """Why no higher load is reported."""
    capacity: Capacity | None
    """Of a search by rate."""
    probes: list[Probe]
    environment: dict[str, Any]


class SweepReport(Part):
    """`report.json` of an artifact of kind `load-sweep`."""

    schema_version: SchemaVersion
    verdict: Verdict
    """The worst of the loads."""
    problems: list[str]
    endpoint: EndpointReport
    inputs: list[Input]
    axis: Axis
    arrivals: Arrivals = "requests"
    """The unit of the rates and the streams: with `workload.sessions`, conversations."""
    knee: Knee | None
    """Of a sweep over streams at once."""
    scenarios: list[ScenarioReport]
    probes: list[Probe]
    environment: dict[str, Any]


class ParetoPoint(Part):
    """One server under one number of streams."""

    server: str
    concurrency: int
    verdict: Verdict
    problems: list[str]
    num_requests: int
    tokens_per_s_per_user: float | None
    """Output tokens per second of a stream after its first token: 1 / TPOT, at the median."""
    tokens_per_s_per_user_ci95: tuple[float, float] | None
    tokens_per_s: float | None
    """Output tokens per second of the whole server."""
    tokens_per_s_ci95: tuple[float, float] | None
    ttft_p90_s: float | None
    is_on_front: bool
    """No other point has as many tokens/s per user and of the server, and more of either."""

    @property
    def is_usable(self) -> bool:
        """Return whether the point says something about the server."""
        known = self.tokens_per_s_per_user is not None and self.tokens_per_s is not None
        return known and self.verdict != Verdict.INVALID

    @property
    def place(self) -> tuple[float, float]:
        """Return tokens/s per user and of the server, of a usable point."""
        return self.tokens_per_s_per_user or 0.0, self.tokens_per_s or 0.0


class ParetoServer(Part):
    """One server of a Pareto sweep."""

    name: str
    settings: dict[str, Any]
    endpoint: EndpointReport | None
    problem: str | None
    """Why it could not be measured."""


class ParetoReport(Part):
    """`report.json` of an artifact of kind `load-pareto`."""

    schema_version: SchemaVersion
    verdict: Verdict
    """The worst of the points; FAIL if a server could not be measured."""
    problems: list[str]
    inputs: list[Input]
    slo: SLO
    servers: list[ParetoServer]
    points: list[ParetoPoint]
    environment: dict[str, Any]


class Difference(Part):
    """B minus A of one metric, over requests that both answered."""

    metric: str
    unit: str
    num_pairs: int
    num_conversations: int | None = None
    """Conversations that the pairs belong to; null for single requests."""
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
    """Pairs that a verdict needs at least, if too few are why it is unclear."""


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
