"""`report.json` of a load test as types: the report is written from them and read through them.

The docstring of a field is its description in docs/loadtest.md. Raise SCHEMA_VERSION when a key
changes its name or its meaning.
"""

from __future__ import annotations

from typing import Any, Literal

from loadtest.config import SLO, Scenario
from loadtest.report.answer_schema import AnswerFigures, CancellationFigures, Endings, RepeatFigures
from loadtest.report.part import Distribution, Part, Share
from loadtest.report.session_schema import SessionFigures
from loadtest.report.soak_schema import OverTime
from loadtest.workload_config import WorkloadConfig
from tuneline.core.artifact import Input
from tuneline.core.verdict import Verdict

SchemaVersion = Literal[5]
SCHEMA_VERSION: SchemaVersion = 5
REPORT_FILE = "report.json"


class Throughput(Part):
    """Rates over the window in which requests arrive, or over the whole run if that window is
    shorter than a request."""

    window: Literal["arrivals", "whole run"]
    window_s: float
    offered_rps: float | None
    succeeded_rps: float | None
    output_tokens_per_s: float | None
    prompt_tokens_per_s: float | None
    goodput_rps: float | None
    """Requests per second that meet every goodput limit; null without such limits."""
    goodput_share: float | None = None
    """Requests that meet every goodput limit as a share of the offered requests."""
    goodput_share_ci95: tuple[float, float] | None = None
    succeeded_rps_ci95: tuple[float, float] | None = None
    """95 % interval by block means; null with too few blocks."""
    output_tokens_per_s_ci95: tuple[float, float] | None = None
    goodput_rps_ci95: tuple[float, float] | None = None


class Tokens(Part):
    """Counts by the server's usage, and how they compare with the events."""

    num_output_tokens: int
    num_prompt_tokens: int
    num_cached_prompt_tokens: int | None
    num_events: int
    num_without_done: int
    """Succeeded requests whose stream ends without `[DONE]`, after a finish reason."""
    num_without_usage: int
    """Succeeded requests whose stream carries no usage."""
    num_more_events_than_tokens: int
    """Succeeded requests with more text events than tokens by usage: one of the two is wrong."""
    num_wrong_length: int
    """With `ignore_eos`: succeeded requests that do not have exactly `max_tokens` tokens."""
    num_first_tokens_estimated: int
    """Requests with several tokens per event and no count in each: their TPOT takes the mean."""
    num_merged_events: int
    """Events that came in one read with the event before, so that their gap reads as zero."""


class Dispersion(Part):
    """How a sequence of arrivals is spread in time."""

    num_arrivals: int
    rate_rps: float | None = None
    """Gaps per second between the first and the last arrival."""
    gap_cv: float | None = None
    """Coefficient of variation of the gaps: 1 for Poisson, 0 for constant."""
    index_of_dispersion: float | None = None
    """Variance over mean of the counts in equal bins of ten expected arrivals: 1 for Poisson."""


class SteadyState(Part):
    """From when on a run is steady, and whether it grows without end."""

    num_discarded: int
    """Requests before the steady part; MSER-5 (White, Simulation 69, 1997)."""
    from_s: float | None
    """Intended time of the first steady request."""
    found: bool
    """False if MSER discards more than half: there is no steady part."""
    growth: float | None
    """Growth of the latency over the steady part, as a share of its median (least squares)."""
    growing: bool
    """The lower bound of the growth's 95 % interval is above 0.5: the queue does not settle."""


class Objective(Part):
    """One service level objective and its outcome."""

    name: str
    """The key in `slo`, such as `ttft_s.p90`."""
    limit: float
    measured: float | None
    """Null if the value is infinite or withheld."""
    unit: str
    n: int
    verdict: Verdict
    reason: str
    num_needed: int | None = None
    """Values that a verdict needs at least, if too few are why it is INCONCLUSIVE."""


class Calibration(Part):
    """The client's figures minus the known server's own record of the same requests, seconds."""

    num_requests: int
    num_streams: int | None
    """Streams of a closed loop."""
    rate_rps: float | None
    """Rate of an open loop."""
    ttft_bias_p50_s: float | None
    """Median by the client minus median by the server; null if no request came back whole."""
    ttft_bias_p90_s: float | None
    ttft_bias_p99_s: float | None
    tpot_bias_p50_s: float | None
    true_ttft_p50_s: float | None
    cpu_s_per_1000_tokens: float
    """CPU time of the client, with the parsing after the window."""
    busy_share: float
    """CPU time of the busiest client process over the window's length."""
    problems: list[str]
    """Lost requests, miscounted tokens, no headroom; empty if the client is fit."""
    tls: bool = False
    """Whether it was measured over TLS."""


class Requests(Part):
    """Every request has one end: `offered = succeeded + failed + unfinished + cancelled`."""

    offered: int
    succeeded: int
    failed: int
    unfinished: int
    cancelled: int
    """Requests whose client left as `cancellations` asks."""
    warmup: int
    """Warm-up requests, which the other counts leave out."""
    error_rate: float
    """Failed and unfinished requests as a share of the offered requests."""
    error_rate_ci95: tuple[float, float]


class FailureClass(Part):
    """Failures of one class."""

    count: int
    examples: list[str]
    """Up to three messages."""


class ImageFigures(Part):
    """Images in the measured requests that were sent; those of a history count in every turn."""

    num_sent: int
    mean_url_bytes: float
    """Mean length of an image's URL, which holds the whole image if it is a data URL."""


class GpuFigures(Part):
    """Energy of all GPUs of the machine while requests were in flight, by all programs."""

    names: list[str]
    window_s: float
    """Time between the two readings: from up to a second before the first request to up to a second
    after the last answer."""
    mean_power_w: list[float]
    """By GPU, in the order of `names`."""
    energy_j: float
    """Sum over the GPUs."""
    energy_j_per_1000_tokens: float | None
    """Per 1,000 generated tokens, warm-up included; null without tokens."""


class Arrivals(Part):
    """The load that was scheduled and the load that was delivered."""

    scheduled: Dispersion
    delivered: Dispersion


class ModelFigures(Part):
    """Figures of one served name of a mix."""

    offered: int
    succeeded: int
    ttft_s: Distribution | None
    """Null for vectors and scores, as `tpot_s` is: such an answer comes whole."""
    tpot_s: Distribution | None
    e2e_s: Distribution


class Client(Part):
    """The client's figures about itself."""

    num_workers: int
    send_lag_s: Distribution
    """How late requests were sent, without the time that they waited for a connection."""
    connect_wait_s: Distribution
    """How long requests waited for a connection of their own, of those that waited."""
    loop_lag_s: Distribution
    """How late the event loop was."""
    read_lag_s: Distribution
    """How long bytes waited in the kernel before the client read them."""
    cpu_s: float
    parse_cpu_s: float
    num_reads: int
    num_reads_kernel_clock: int
    """Reads with a timestamp of the kernel."""
    num_connects_in_window: int
    """Requests that waited for a connection of their own."""
    num_spares_opened: int
    """Connections opened ahead of need after the start."""
    num_resent: int
    """Requests sent again because the server closed an idle connection."""
    steal_share: float | None
    """Share of the CPU time that the hypervisor gave to others."""
    throttled_share: float | None
    """Share of the time for which a CPU quota stopped the client."""
    nice: int
    """Scheduling priority."""


class Reconciliation(Part):
    """One figure by the client and by the server."""

    name: str
    unit: str
    client: float
    server: float
    share: float | None
    """Client minus server, over server."""


class Server(Part):
    """The server's own figures over the same window, from its `/metrics`."""

    figures: dict[str, float | None]
    reconciliation: list[Reconciliation]
    warnings: list[str]


class ScenarioReport(Part):
    """One scenario, measured and judged."""

    name: str
    verdict: Verdict
    problems: list[str]
    """Why the verdict is not PASS."""
    warnings: list[str]
    config: Scenario
    """The scenario as configured."""
    plan_digest: str
    """Equal for runs that ask the same at the same times."""
    slo: SLO
    """The objectives that were judged."""
    objectives: list[Objective]
    within: dict[str, Share]
    """Per latency objective, the requests that keep to its limit."""
    start_unix_s: float
    """Wall-clock time of the start of the schedule, seconds since 1970."""
    requests: Requests
    errors: dict[str, FailureClass]
    """Failures by class."""
    retry_after_s: list[float]
    """The `Retry-After` values that the server named."""
    latency: dict[str, Distribution]
    """By metric; docs/metrics.md defines the metrics. Vectors and scores have none of tokens."""
    throughput: Throughput
    tokens: Tokens
    arrivals: Arrivals
    mean_in_flight: float | None
    """Requests in flight on average, by Little's law."""
    steady_state: SteadyState
    models: dict[str, ModelFigures] | None
    """Figures per served name of a mix; null for a single name."""
    sessions: SessionFigures | None
    """Figures of conversations; null without `workload.sessions`."""
    answers: AnswerFigures | None
    """The answers to the reference's prompts; null without `answers`."""
    repeats: RepeatFigures | None
    """Prompts that were sent more than once; null with too few."""
    cancellations: CancellationFigures | None
    """Clients that left; null without `cancellations`."""
    client: Client
    calibration: Calibration | None
    """The client's bias at this load; null without calibration."""
    server: Server | None
    """The server's own figures; null if it shows none."""
    text_sample: list[str]
    """The first answers, shortened."""
    endings: Endings | None = None
    """The finish reasons of the answers and the models that they name."""
    over_time: OverTime | None = None
    """The run in blocks of time, with the drifts of latency and of the server's memory."""
    images: ImageFigures | None = None
    """Images that were sent; null without images in the workload."""
    gpu: GpuFigures | None = None
    """Energy of this machine's GPUs; null if NVML gives none, or the server runs elsewhere."""
    spilled: bool = False
    """Whether the records lie in `records-NAME.*.spill`, and percentiles come from histograms."""


class EndpointReport(Part):
    """The endpoint that was measured."""

    url: str
    model: str
    served_names: list[str]
    artifact_name: str | None
    """`name@digest12` of the served artifact, if the server has such a name."""
    artifact_short_digest: str | None
    server: str | None
    """The `Server` header."""
    is_listed: bool = True
    """Whether `/models` lists the model; false if the server has no such list."""
    engine: str | None = None
    """A digest of the settings of Tuneline's server: the section `serving`, without limits and
    names."""


class WorkloadReport(WorkloadConfig):
    """The workload section, with the common keys that decide what requests hold."""

    max_tokens: int
    ignore_eos: bool
    extra_body: dict[str, Any]
    seed: int


class LoadReport(Part):
    """`report.json` of an artifact of kind `load-report`."""

    schema_version: SchemaVersion
    verdict: Verdict
    """The worst of the scenarios."""
    problems: list[str]
    """Why the verdict is not PASS."""
    endpoint: EndpointReport
    inputs: list[Input]
    """The artifacts that the endpoint was known to serve."""
    workload: WorkloadReport
    scenarios: list[ScenarioReport]
    environment: dict[str, Any]
    """Python, libraries, hardware and git commit of the client."""

    def scenario(self, name: str) -> ScenarioReport:
        """Return the scenario of that name; it exists in every report that lists its records."""
        return next(one for one in self.scenarios if one.name == name)
