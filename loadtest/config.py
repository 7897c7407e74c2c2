"""The `loadtest` section of run.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from loadtest.arrivals.table import ARRIVALS, option_problems
from loadtest.percentiles import percentile_of
from loadtest.secret_keys import header_problem, secret_key
from loadtest.workload_config import POOLED, WorkloadConfig
from tuneline.core.config import StrictModel, apply_override, validate_config
from tuneline.core.errors import ConfigError
from tuneline.core.tolerances import Tolerances

if TYPE_CHECKING:
    Arrival = str
else:
    Arrival = Literal[tuple(ARRIVALS)]


def _percentile_limits(limits: dict[str, float]) -> dict[str, float]:
    for name in limits:
        try:
            percentile_of(name)
        except ValueError as error:
            raise ValueError(f"{name!r} is not a percentile; {error}") from None
    return limits


Limits = Annotated[dict[str, Annotated[float, Field(gt=0)]], AfterValidator(_percentile_limits)]
"""Limits in seconds by percentile: `{p90: 1.0, p99: 5.0}`."""

DEFAULT_MAX_TOKENS = 64
MAX_ARRIVALS = 100_000_000
"""Each arrival time of an open loop is in memory before the start."""


class SLO(StrictModel):
    """Service level objectives. Latencies count from the time a request was meant to be sent. A
    failed request counts as infinitely slow. Only the objectives that are given are judged.

    A latency objective is a mapping of percentiles, `p50` to `p99.9`, to seconds:
    `ttft_s: {p90: 1.0, p99: 5.0}`."""

    other_names: ClassVar[dict[str, str]] = {
        f"{metric}_p{q}_s": f"{metric}_s: {{p{q}: ...}}"
        for metric in ("ttft", "tpot", "e2e")
        for q in (50, 90, 99)
    }

    ttft_s: Limits = Field(default={})
    """Time to first token, seconds by percentile."""
    tpot_s: Limits = Field(default={})
    """Time per output token after the first, seconds by percentile."""
    worst_gap_s: Limits = Field(default={})
    """Longest gap between two events of a request, seconds by percentile."""
    e2e_s: Limits = Field(default={})
    """End-to-end latency, seconds by percentile."""
    session_s: Limits = Field(default={})
    """With `workload.sessions`: time to finish a conversation, with its delays, seconds by
    percentile."""
    session_wait_s: Limits = Field(default={})
    """With `workload.sessions`: time that a conversation waits for its answers, seconds by
    percentile."""
    max_session_error_rate: float | None = Field(default=None, ge=0, lt=1)
    """With `workload.sessions`: most conversations with a failed or unfinished turn, as a share."""
    max_error_rate: float | None = Field(default=0.0, ge=0, lt=1)
    """Most failed or unfinished requests as a share of the offered requests. 0.0: no request that
    was sent may fail. Above 0.0, the 95 % interval of the share is judged, which takes enough
    requests: 381 without a failure for 0.01."""
    min_request_throughput_rps: float | None = Field(default=None, gt=0)
    min_output_throughput_tps: float | None = Field(default=None, gt=0)
    """Output tokens per second."""
    goodput_ttft_s: float | None = Field(default=None, gt=0)
    """A request is good when it meets each of the three limits that is given."""
    goodput_tpot_s: float | None = Field(default=None, gt=0)
    goodput_e2e_s: float | None = Field(default=None, gt=0)
    min_goodput_rps: float | None = Field(default=None, gt=0)
    """Least good requests per second."""
    min_goodput_share: float | None = Field(default=None, gt=0, le=1)
    """Least good requests as a share of the offered requests; below 1.0 the share's 95 % interval
    is judged."""

    max_latency_drift_per_hour: float | None = Field(default=None, gt=0)
    """Most growth per hour of the medians of TTFT, TPOT and end-to-end latency, as a share of their
    level in the run. The 95 % interval of the slope is judged."""
    max_server_memory_growth_mib_per_hour: float | None = Field(default=None, gt=0)
    """Most growth per hour of the server's memory (`process_resident_memory_bytes` of its
    `/metrics`) in MiB; the 95 % interval of the slope is judged."""
    max_kv_cache_growth_per_hour: float | None = Field(default=None, gt=0)
    """Most growth per hour of the used share of the KV cache (`vllm:kv_cache_usage_perc`); the 95 %
    interval of the slope is judged."""

    @model_validator(mode="after")
    def _goodput_has_limits(self) -> Self:
        wanted = self.min_goodput_rps is not None or self.min_goodput_share is not None
        if wanted and not self.has_goodput:
            raise ValueError(
                "min_goodput_rps and min_goodput_share need goodput_ttft_s, goodput_tpot_s or "
                "goodput_e2e_s"
            )
        return self

    @property
    def bounds(self) -> dict[str, float]:
        """Return every given objective that is one number: `min_` is the least, `max_` the most."""
        names = (name for name in SLO.model_fields if name.startswith(("min_", "max_")))
        return {name: limit for name in names if (limit := getattr(self, name)) is not None}

    @property
    def has_sessions(self) -> bool:
        """Return whether an objective is set on conversations."""
        return bool(
            self.session_s or self.session_wait_s or self.max_session_error_rate is not None
        )

    @property
    def has_samples(self) -> bool:
        """Return whether an objective is set on the server's memory or cache."""
        limits = (self.max_server_memory_growth_mib_per_hour, self.max_kv_cache_growth_per_hour)
        return any(limit is not None for limit in limits)

    @property
    def has_goodput(self) -> bool:
        limits = (self.goodput_ttft_s, self.goodput_tpot_s, self.goodput_e2e_s)
        return any(limit is not None for limit in limits)

    @property
    def of_tokens(self) -> list[str]:
        """Return the names of the given objectives on output tokens and their times."""
        found = [name for name in ("ttft_s", "tpot_s", "worst_gap_s") if getattr(self, name)]
        bounds = ("min_output_throughput_tps", "goodput_ttft_s", "goodput_tpot_s")
        return found + [name for name in bounds if getattr(self, name) is not None]

    @property
    def times_of_requests(self) -> list[tuple[str, float]]:
        """Return the limits of whole requests, by name: a request that fails keeps to none."""
        found = [
            (f"{metric}.{name}", limit)
            for metric, limits in (("ttft_s", self.ttft_s), ("e2e_s", self.e2e_s))
            for name, limit in limits.items()
        ]
        shares = (("goodput_ttft_s", self.goodput_ttft_s), ("goodput_e2e_s", self.goodput_e2e_s))
        return found + [(name, limit) for name, limit in shares if limit is not None]

    @property
    def latency(self) -> dict[str, dict[float, float]]:
        """Limits in seconds, by metric and by percentile in ascending order; only metrics that
        have limits."""
        by_metric = {
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "worst_gap_s": self.worst_gap_s,
            "e2e_s": self.e2e_s,
            "session_s": self.session_s,
            "session_wait_s": self.session_wait_s,
        }
        return {
            metric: dict(sorted((percentile_of(name), limit) for name, limit in limits.items()))
            for metric, limits in by_metric.items()
            if limits
        }


class Scenario(StrictModel):
    """One run: open loop with `rate_rps` (or `arrival: burst`), or closed loop with
    `concurrency`; for `num_requests` or for `duration_s`."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$")
    rate_rps: float | None = Field(default=None, gt=0)
    """Open loop: mean arrivals per second, whatever the server does."""
    arrival: Arrival | None = None
    """Open loop: `poisson` (the default), `constant`, `gamma` with `burstiness`, `ramp` from
    `rate_rps` to `rate_end_rps` (Poisson), `burst`: all at once, or `trace`: the times that a
    `mooncake` workload holds."""
    burstiness: float | None = Field(default=None, gt=0)
    """Shape of gamma-distributed gaps: 1 is Poisson, less comes in bursts, more is more even. The
    gaps' coefficient of variation is 1/sqrt(burstiness)."""
    rate_end_rps: float | None = Field(default=None, gt=0)
    """The rate at the end of a ramp."""
    trace_speed: float | None = Field(default=None, gt=0)
    """2 replays a trace in half its time, recorded delays of conversations included; 1 by
    default."""
    concurrency: int | None = Field(default=None, ge=1)
    """Closed loop: streams kept in flight; the next is sent when one ends."""
    num_requests: int | None = Field(default=None, ge=1, le=MAX_ARRIVALS)
    """Measured requests; warm-up comes before them."""
    duration_s: float | None = Field(default=None, gt=0)
    """Measured seconds in which requests are sent; those in flight then are waited for."""
    slo: SLO | None = None
    """Objectives of this scenario, in place of the common `slo`."""

    @model_validator(mode="after")
    def _exclusive(self) -> Self:
        problems = []
        is_open = self.concurrency is None
        needs_rate = self.arrival is None or "rate_rps" in ARRIVALS[self.arrival].rates
        if (is_open and needs_rate and self.rate_rps is None) or (
            not is_open and self.rate_rps is not None
        ):
            problems.append("give either rate_rps (open loop) or concurrency (closed loop)")
        if not is_open and self.arrival is not None:
            problems.append("arrival is for open loops; concurrency makes a closed loop")
        problems += option_problems(self)
        if (self.num_requests is None) == (self.duration_s is None):
            problems.append("give either num_requests or duration_s")
        if is_open and (self.duration_s or 0.0) * (self.rate_rps or 0.0) > MAX_ARRIVALS:
            problems.append(f"rate_rps times duration_s is above {MAX_ARRIVALS:,} requests")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def loop(self) -> Literal["open", "closed"]:
        return "open" if self.concurrency is None else "closed"


class AnswersConfig(StrictModel):
    """A share of the requests ask the reference's prompts, greedily. Their answers are compared
    with the reference's, so that a server that is fast and wrong under load fails."""

    share: float = Field(default=0.05, gt=0, le=1)
    """Of the arrivals."""
    reference: Path | None = Field(default=None, json_schema_extra={"keyed": False})
    """The folder of an artifact of kind `reference`; a line takes its own."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """The number format that the server computes in, without a line: it sets the tolerances."""
    tolerances: Tolerances | None = None
    """In place of those of `dtype`."""
    max_length_drift: float = Field(default=0.1, ge=0)
    """Most difference of the answers' tokens from the reference's tokens, as a share of these."""


class CancellationsConfig(StrictModel):
    """A share of the clients leave before their answer ends."""

    share: float = Field(default=0.1, gt=0, lt=1)
    """Of the requests."""
    after_s: float | None = Field(default=None, gt=0)
    """They leave this long after the intended time, to within 20 ms."""
    after_tokens: int | None = Field(default=None, ge=1)
    """Or when this many events with text have come."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.after_s is None) == (self.after_tokens is None):
            raise ValueError("give either after_s or after_tokens")
        return self


class LoadTestConfig(StrictModel):
    """The requests, their rate, and the objectives that the endpoint must meet."""

    scenarios: list[Scenario] = Field(
        default=[
            Scenario(name="open-4rps", rate_rps=4.0, num_requests=60),
            Scenario(name="closed-4", concurrency=4, num_requests=60),
        ],
        min_length=1,
    )
    """Run one after the other."""
    slo: SLO = SLO()
    workload: WorkloadConfig = WorkloadConfig()
    answers: AnswersConfig | None = None
    """Compare answers with the reference's while the load runs."""
    cancellations: CancellationsConfig | None = None
    """Let a share of the clients leave."""
    max_tokens: int = Field(default=DEFAULT_MAX_TOKENS, ge=1)
    """Most tokens per answer."""
    ignore_eos: bool = False
    """Ask for exactly `max_tokens` tokens (`ignore_eos` and `min_tokens`, vLLM's own parameters);
    an answer of another length makes the run INVALID."""
    num_warmup_requests: int = Field(default=8, ge=0)
    """Requests sent before the measured ones, at the same pace and without a pause between."""
    timeout_s: float = Field(default=60.0, gt=0)
    """A request fails when it has not ended this long after it was meant to be sent."""
    seed: int = 0
    """Seed of the arrival times and of the order of prompts."""
    num_workers: int = Field(default=1, ge=1)
    """Client processes, which share one schedule. A closed loop uses at most one per stream."""
    max_client_lag_s: float | None = Field(default=None, gt=0)
    """A run is INVALID when the p99 of the client's send lag or loop lag is above this. The default
    is 2 ms, or 2 % of the tightest TTFT or end-to-end objective if that is more."""
    check_models: bool = Field(default=True, json_schema_extra={"keyed": False})
    """Before any load, check in `/models` that the server serves the model. `false` is for a server
    without such a list."""
    calibrate: bool = True
    """Before each scenario, measure the client's own bias against the bundled server of known
    delays at the same load, for about three seconds."""
    headers: dict[str, str] = Field(default={})
    """Further headers of each request, such as `x-tenant: a`. The value `$NAME` is that of the
    environment variable NAME, which no report shows: `api-key: $AZURE_KEY`."""
    extra_body: dict[str, Any] = Field(default={"temperature": 0.0})
    """Further keys of the request's JSON body, as the openai client's `extra_body`."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        names = [scenario.name for scenario in self.scenarios]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"scenario names must differ; found twice: {', '.join(twice)}")
        for arrival in {scenario.arrival for scenario in self.scenarios if scenario.arrival}:
            sources = ARRIVALS[arrival].sources
            if sources and self.workload.source not in sources:
                raise ValueError(
                    f"arrival: {arrival} needs workload.source: {' or '.join(sources)}"
                )
        slos = [self.slo, *(one.slo for one in self.scenarios if one.slo)]
        if self.workload.sessions is None and any(slo.has_sessions for slo in slos):
            raise ValueError("session_s, session_wait_s and max_session_error_rate need sessions")
        for name, limit in [limit for slo in slos for limit in slo.times_of_requests]:
            if limit > self.timeout_s:
                raise ValueError(
                    f"slo.{name} is {limit:g}; a request fails after timeout_s, "
                    f"{self.timeout_s:g}: it must be as long"
                )
        route = self.workload.route
        if route == "messages" and self.ignore_eos:
            raise ValueError("ignore_eos is not a parameter of route: messages")
        if route != "chat" and self.answers is not None:
            raise ValueError("answers are compared over route: chat")
        unfit = [f"slo.{name}" for slo in slos for name in slo.of_tokens]
        unfit += ["ignore_eos"] if self.ignore_eos else []
        # A configuration that was resolved has the default itself.
        unfit += ["max_tokens"] if self.max_tokens != DEFAULT_MAX_TOKENS else []
        if self.cancellations is not None and self.cancellations.after_tokens is not None:
            unfit.append("cancellations.after_tokens")
        if route in POOLED and unfit:
            raise ValueError(f"route: {route} answers without tokens: remove {', '.join(unfit)}")
        ours = {"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "n"}
        ours |= {"input", "max_output_tokens", "system"} if route != "chat" else set()
        ours |= {"text_1", "text_2", "query", "documents"} if route in POOLED else set()
        ours |= {"tools"} if self.workload.tools else set()
        if secret := secret_key(self.extra_body):
            raise ValueError(
                f"extra_body.{secret}: the report would show it; a key goes into the environment "
                "variable that --api-key-env names"
            )
        if problem := header_problem(self.headers):
            raise ValueError(problem)
        taken = sorted(ours & self.extra_body.keys())
        if taken:
            raise ValueError(f"extra_body may not set {', '.join(taken)}: the load test sets them")
        return self


def quick_config(
    *,
    rate_rps: float | None = None,
    concurrency: int | None = None,
    num_requests: int | None = None,
    duration_s: float | None = None,
    max_tokens: int | None = None,
    overrides: Sequence[str] = (),
) -> LoadTestConfig:
    """Return a configuration of one scenario from command-line options.

    The default is 1 stream and 100 requests; an override with an arrival pattern has no stream.

    Args:
        overrides: `KEY=VALUE`, as `--set` takes them; every key begins with `loadtest.`.

    Raises:
        ConfigError: The options exclude one another or are out of range.
    """
    if num_requests is None and duration_s is None:
        num_requests = 100
    scenario: dict[str, Any] = {
        "rate_rps": rate_rps,
        "concurrency": concurrency,
        "num_requests": num_requests,
        "duration_s": duration_s,
    }
    values: dict[str, Any] = {"scenarios": [scenario]}
    if max_tokens is not None:
        values["max_tokens"] = max_tokens
    whole = {"loadtest": values}
    for override in overrides:
        apply_override(whole, override)
    if others := sorted(whole.keys() - {"loadtest"}):
        raise ConfigError(
            f"--set {', '.join(others)}: without RUN.yaml only loadtest.* can be set",
            hint="Try: --set loadtest.slo.ttft_s.p90=0.5",
        )
    is_open = scenario["rate_rps"] is not None or "arrival" in scenario
    scenario.setdefault("name", "open" if is_open else "closed")
    if not is_open and scenario["concurrency"] is None:
        scenario["concurrency"] = 1
    return validate_config(LoadTestConfig, values, "options")
