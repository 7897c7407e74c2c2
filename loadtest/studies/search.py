"""The highest rate that an endpoint holds, and the most streams at once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loadtest.client.headers import with_headers
from loadtest.client.server_check import Served
from loadtest.config import LoadTestConfig
from loadtest.judging.intervals import CONFIDENCE
from loadtest.report.build import endpoint_report
from loadtest.report.plots import plot_loads
from loadtest.report.schema import REPORT_FILE, SCHEMA_VERSION
from loadtest.run import check_served
from loadtest.studies.bracket import LOWEST_SHARE, bracket
from loadtest.studies.judgeable_objectives import require_objective
from loadtest.studies.knee import find_knee
from loadtest.studies.load import Axis, Load, arrivals_of, unit_of
from loadtest.studies.schema import Capacity, SearchReport
from loadtest.studies.tries import MOST_REQUESTS, CannotTell, OutOfTime, Tries, prompts_digest
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.documents import write_document
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ConfigError
from tuneline.core.messages import ChatPrompt
from tuneline.core.verdict import Verdict

MAX_CONFIRMATIONS = 5
REPLICA_LOAD = 0.7
"""Share of the highest rate that a replica is planned for."""

LimitedBy = Literal["objectives", "num_requests", "max_rate", "max_concurrency", "time_limit"]


@dataclass(frozen=True)
class Options:
    """How a search goes; `search_rate` and `search_concurrency` describe each."""

    axis: Axis
    start: float
    most: float
    num_requests: int
    precision: float
    peak_rps: float | None = None
    goes_down: bool = True
    time_limit_s: float | None = None
    resume_key: str | None = None


def search_rate(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    *,
    prompts: Sequence[ChatPrompt],
    inputs: Sequence[Input] = (),
    start_rps: float = 1.0,
    max_rps: float = 1000.0,
    num_requests: int = 300,
    precision: float = 0.1,
    peak_rps: float | None = None,
    goes_down: bool = True,
    time_limit_s: float | None = None,
    resume_key: str | None = None,
) -> Artifact:
    """Find the highest open-loop rate at which every objective of `config.slo` holds.

    Brackets that rate (see `bracket`), then runs the winner again, twice as long and with another
    schedule: the best of several tries is otherwise too good. Steps down if the second run
    fails. INCONCLUSIVE counts as failed; but if an objective only needs more requests, the rate
    is tried once more with enough. Writes an artifact of kind `load-search`.

    Args:
        config: Objectives, workload and client options; its scenarios are not used.
        endpoint: Where to send.
        out: Where the artifact goes.
        prompts: Chat messages of each prompt.
        inputs: The artifacts that the endpoint is known to serve.
        start_rps: The first rate.
        max_rps: No higher rate is tried.
        num_requests: Measured requests of each probe.
        precision: Distance of the two final rates, as a share of the lower rate.
        peak_rps: A rate to compute replicas for.
        goes_down: Whether rates below the first are tried.
        time_limit_s: No probe starts after so long; the search is then INCONCLUSIVE, unless it has
            confirmed a rate.
        resume_key: Names the server with its settings. A search that was killed goes on where it
            stopped if it is started again with the same configuration, inputs and key.

    Raises:
        ConfigError: No latency, throughput or goodput objective is set, or a rate makes no sense.
        ServerError: The endpoint does not answer as it should (see `run_loadtest`).
    """
    options = Options(
        "rate", start_rps, max_rps, num_requests, precision, peak_rps, goes_down, time_limit_s,
        resume_key,
    )  # fmt: skip
    return _search(config, endpoint, out, prompts, inputs, options)


def search_concurrency(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    *,
    prompts: Sequence[ChatPrompt],
    inputs: Sequence[Input] = (),
    start: int = 1,
    most: int = 1024,
    num_requests: int = 300,
    precision: float = 0.1,
    time_limit_s: float | None = None,
    resume_key: str | None = None,
) -> Artifact:
    """Find the most streams at once at which every objective of `config.slo` holds, and the knee.

    Goes like `search_rate`, with a closed loop for each number of streams. Each probe has at least
    12 requests per stream, up to ten times `num_requests`.

    Args:
        start: The first number of streams.
        most: No higher number is tried.

    Raises:
        ConfigError: No latency, throughput or goodput objective is set, or a number makes no sense.
        ServerError: The endpoint does not answer as it should (see `run_loadtest`).
    """
    options = Options(
        "concurrency", float(start), float(most), num_requests, precision,
        time_limit_s=time_limit_s, resume_key=resume_key,
    )  # fmt: skip
    return _search(config, endpoint, out, prompts, inputs, options)


def _search(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    prompts: Sequence[ChatPrompt],
    inputs: Sequence[Input],
    options: Options,
) -> Artifact:
    require_objective(config, options.num_requests)
    unit = unit_of(options.axis, arrivals_of(config))
    _check(options, unit)
    endpoint = with_headers(config, endpoint)
    served = check_served(config, endpoint, inputs)
    deadline_s = None
    if options.time_limit_s is not None:
        deadline_s = time.monotonic() + options.time_limit_s
    resolved = {**config.model_dump(mode="json"), "search": _resolved(config, options, prompts)}
    with new_artifact(
        out, "load-search", config=resolved, inputs=inputs, resumable=options.resume_key is not None
    ) as draft:
        journal = draft.journal if options.resume_key is not None else None
        tries = Tries(
            config, endpoint, prompts, options.axis, options.num_requests, journal, deadline_s
        )
        report = _report(config, endpoint, served, inputs, options, tries, _find(tries, options))
        write_document(report, draft.dir / REPORT_FILE)
        plot_loads(report.probes, draft.dir, unit, report.knee)
        draft.metrics.update(_metrics(report))
    return open_artifact(out)


def _resolved(
    config: LoadTestConfig, options: Options, prompts: Sequence[ChatPrompt]
) -> dict[str, Any]:
    """Return the options for the manifest, by the names that the command has. A search goes on only
    with the same prompts."""
    names = {"rate": ("start_rps", "max_rps"), "concurrency": ("start", "most")}[options.axis]
    found = {
        "axis": options.axis,
        names[0]: options.start,
        names[1]: options.most,
        "num_requests": options.num_requests,
        "precision": options.precision,
    }
    if options.resume_key is None:
        return found
    return {**found, "server": options.resume_key, "prompts": prompts_digest(config, prompts)}


def _metrics(report: SearchReport) -> dict[str, Any]:
    found: dict[str, Any] = {"verdict": report.verdict, "problems": report.problems}
    if report.axis == "concurrency":
        knee = report.knee
        return found | {
            "max_concurrency": report.max_concurrency,
            "knee": None if knee is None else knee.model_dump(),
        }
    capacity = None if report.capacity is None else report.capacity.model_dump()
    return found | {"max_rate_rps": report.max_rate_rps, "capacity": capacity}


def _check(options: Options, unit: str) -> None:
    """Raise ConfigError if a load, the precision or the time makes no sense."""
    start, most, precision = options.start, options.most, options.precision
    if not 0 < start <= most < math.inf or not 0 < precision < math.inf:
        raise ConfigError(
            f"start {start:g}, max {most:g} {unit}, precision {precision:g}: "
            "expected 0 < start <= max and a precision above 0"
        )
    peak, limit_s = options.peak_rps, options.time_limit_s
    if peak is not None and not 0 < peak < math.inf:
        raise ConfigError(f"peak {peak:g} {unit}: expected a rate above 0")
    if limit_s is not None and not 0 < limit_s < math.inf:
        raise ConfigError(f"time limit {limit_s:g} s: expected a time above 0")


@dataclass(frozen=True)
class Found:
    """How a search ended."""

    verdict: Verdict
    problems: list[str]
    best: float | None = None
    failing: float | None = None
    num_confirmations: int = 0
    is_out_of_time: bool = False


def _find(tries: Tries, options: Options) -> Found:
    """Bracket the highest load, and confirm it with a second run."""
    best = failing = None
    num_confirmations = 0
    try:
        best, failing = _bracketed(tries, options)
        while best is not None and num_confirmations < MAX_CONFIRMATIONS:
            num_confirmations += 1
            seed = tries.config.seed + 1000 + len(tries.probes)
            if tries.outcome(best, num=2 * options.num_requests, seed=seed) == "holds":
                return Found(Verdict.PASS, [], best, failing, num_confirmations)
            failing = best
            best = _below(best, options)
    except CannotTell as cannot:
        return Found(Verdict.INVALID, [str(cannot)], None, failing, num_confirmations)
    except OutOfTime:
        problem = f"no load was confirmed within {options.time_limit_s:g} s"
        return Found(Verdict.INCONCLUSIVE, [problem], None, failing, num_confirmations, True)
    problem = _why_not(best, tries, tries.undecided.get(failing))
    return Found(Verdict.INCONCLUSIVE, [problem], None, failing, num_confirmations)


def _below(best: float, options: Options) -> float | None:
    """Return the next load below one that held once only; None if the search gives up."""
    lower = best / (1 + options.precision)
    if options.axis == "concurrency":
        lower = float(min(math.floor(lower), best - 1))
    lowest = options.start / LOWEST_SHARE if options.goes_down else options.start
    if options.axis == "concurrency":
        lowest = max(lowest, 1.0)
    return lower if lower >= lowest else None


def _bracketed(tries: Tries, options: Options) -> tuple[float | None, float | None]:
    """Return the highest load that holds and the lowest above it that fails."""
    loads = bracket(
        options.start, options.most, options.precision,
        is_whole=options.axis == "concurrency", goes_down=options.goes_down,
    )  # fmt: skip
    load = next(loads)
    number = 0
    while True:
        outcome = tries.outcome(load, num=options.num_requests, seed=tries.config.seed + number)
        number += 1
        try:
            load = loads.send(outcome)
        except StopIteration as end:
            best, failing = end.value
            return best, failing


def _report(
    config: LoadTestConfig,
    endpoint: Endpoint,
    served: Served,
    inputs: Sequence[Input],
    options: Options,
    tries: Tries,
    found: Found,
) -> SearchReport:
    best, failing = found.best, found.failing
    held = [probe.load for probe in tries.probes if probe.verdict == Verdict.PASS]
    by_rate = options.axis == "rate"
    rates = (best, failing, max(held, default=None))
    streams = tuple(None if value is None else round(value) for value in rates)
    if by_rate:
        streams = (None, None, None)
    else:
        rates = (None, None, None)
    return SearchReport(
        schema_version=SCHEMA_VERSION,
        verdict=found.verdict,
        problems=found.problems,
        endpoint=endpoint_report(endpoint, served),
        inputs=list(inputs),
        slo=config.slo,
        axis=options.axis,
        arrivals=arrivals_of(config),
        max_rate_rps=rates[0],
        lowest_failing_rate_rps=rates[1],
        highest_passed_rps=rates[2],
        max_concurrency=streams[0],
        lowest_failing_concurrency=streams[1],
        highest_passed_concurrency=streams[2],
        knee=None if by_rate else find_knee(tries.probes),
        confirmed=best is not None,
        num_confirmations=found.num_confirmations,
        interval_confidence=CONFIDENCE,
        precision=failing / best - 1 if best and failing else None,
        limited_by=_limited_by(options, found, failing in tries.undecided),
        capacity=_capacity(best, options.peak_rps) if by_rate else None,
        probes=tries.probes,
        environment=environment_facts(),
    )


def _capacity(best: float | None, peak: float | None) -> Capacity:
    return Capacity(
        rate_per_replica_rps=REPLICA_LOAD * best if best else None,
        share_of_max=REPLICA_LOAD,
        peak_rps=peak,
        replicas=replicas(peak, best) if best and peak else None,
    )


def _limited_by(options: Options, found: Found, is_undecided: bool) -> LimitedBy | None:
    """Return `objectives`; or `num_requests` if the load above only needs more requests, or
    `max_rate` or `max_concurrency` if no load failed: then the endpoint may hold more."""
    if found.is_out_of_time:
        return "time_limit"
    if is_undecided:
        return "num_requests"
    if found.best is None:
        return None
    if found.failing is not None:
        return "objectives"
    return "max_rate" if options.axis == "rate" else "max_concurrency"


def replicas(peak_rps: float, max_rate_rps: float) -> int:
    """Return the replicas for a peak rate, each loaded to REPLICA_LOAD of its highest rate."""
    return max(1, math.ceil(peak_rps / (REPLICA_LOAD * max_rate_rps)))


def _why_not(best: float | None, tries: Tries, num_needed: int | None) -> str:
    """Return why no load was found."""
    probes, arrivals = tries.probes, arrivals_of(tries.config)
    unit = unit_of(tries.axis, arrivals)
    if num_needed is not None:
        return (
            f"too few requests to judge a load: {num_needed} are needed; expected --requests "
            f"{-(-num_needed // MOST_REQUESTS)} or more"
        )
    lowest = min(probe.load for probe in probes)
    if all(probe.is_too_low for probe in probes):
        highest = max(probe.load for probe in probes)
        return f"{highest:.3g} {unit} are too few for the throughput objective"
    noun = "rate" if tries.axis == "rate" else f"number of {unit}"
    if best is None and any(probe.is_too_low for probe in probes):
        return f"no {noun} is high enough for the throughput objective and meets the others"
    if best is None:
        return f"no {noun} down to {Load(tries.axis, lowest, arrivals)} holds"
    return f"no {noun} held twice in {MAX_CONFIRMATIONS} tries"
