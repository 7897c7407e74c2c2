"""The highest rate that an endpoint holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loadtest.client.server_check import Served
from loadtest.config import LoadTestConfig
from loadtest.judging.intervals import CONFIDENCE
from loadtest.report.build import endpoint_report
from loadtest.report.plots import plot_rates
from loadtest.report.schema import REPORT_FILE, SCHEMA_VERSION
from loadtest.run import check_served
from loadtest.studies.bracket import LOWEST_SHARE, Outcome, bracket
from loadtest.studies.judgeable_objectives import require_objective
from loadtest.studies.measure_rate import measure_rate, summarize_rate
from loadtest.studies.schema import Capacity, Probe, SearchReport
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.documents import write_document
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ConfigError
from tuneline.core.messages import Messages
from tuneline.core.progress import logger
from tuneline.core.verdict import Verdict

MAX_CONFIRMATIONS = 5
MOST_REQUESTS = 10
"""A probe that too few requests leave undecided runs again with the number that it needs, up to
this many times the given number."""
REPLICA_LOAD = 0.7
"""Share of the highest rate that a replica is planned for."""


@dataclass(frozen=True)
class Options:
    """How a search goes; `search_rate` describes each."""

    start_rps: float
    max_rps: float
    num_requests: int
    precision: float
    peak_rps: float | None


def search_rate(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    *,
    prompts: Sequence[Messages],
    inputs: Sequence[Input] = (),
    start_rps: float = 1.0,
    max_rps: float = 1000.0,
    num_requests: int = 300,
    precision: float = 0.1,
    peak_rps: float | None = None,
) -> Artifact:
    """Find the highest open-loop rate at which every objective of `config.slo` holds.

    Brackets that rate (see `bracket`), then runs the winner again, twice as long and with another
    schedule: the best of several tries is otherwise too good. Steps down where the second run
    fails. INCONCLUSIVE counts as failed; but where an objective only needs more requests, the rate
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

    Raises:
        ConfigError: No latency, throughput or goodput objective is set, or a rate makes no sense.
        ServerError: The endpoint does not answer as it should (see `run_loadtest`).
    """
    options = Options(start_rps, max_rps, num_requests, precision, peak_rps)
    require_objective(config, num_requests)
    _check(options)
    served = check_served(config, endpoint, inputs)
    resolved = {
        **config.model_dump(mode="json"),
        "search": {
            "start_rps": start_rps,
            "max_rps": max_rps,
            "num_requests": num_requests,
            "precision": precision,
        },
    }
    with new_artifact(out, "load-search", config=resolved, inputs=inputs) as draft:
        tries = Tries(config, endpoint, prompts, options.num_requests)
        report = _report(config, endpoint, served, inputs, options, tries, _find(tries, options))
        write_document(report, draft.dir / REPORT_FILE)
        plot_rates(report.probes, draft.dir)
        draft.metrics.update(
            verdict=report.verdict,
            problems=report.problems,
            max_rate_rps=report.max_rate_rps,
            capacity=report.capacity.model_dump(),
        )
    return open_artifact(out)


def _check(options: Options) -> None:
    """Raises: ConfigError where a rate or the precision makes no sense."""
    start, most, precision = options.start_rps, options.max_rps, options.precision
    if not 0 < start <= most < math.inf or not 0 < precision < math.inf:
        raise ConfigError(
            f"start {start:g}, max {most:g} requests/s, precision {precision:g}: expected "
            "0 < start <= max and a precision above 0"
        )
    peak = options.peak_rps
    if peak is not None and not 0 < peak < math.inf:
        raise ConfigError(f"peak {peak:g} requests/s: expected a rate above 0")


class _CannotTell(Exception):
    """The search stops: the reason is not the endpoint's load."""


@dataclass
class Tries:
    """The rates measured so far."""

    config: LoadTestConfig
    endpoint: Endpoint
    prompts: Sequence[Messages]
    num_requests: int
    probes: list[Probe] = field(default_factory=list)
    undecided: dict[float | None, int] = field(default_factory=dict)
    """Rates that too few requests leave open, with the number that they need."""

    def outcome(self, rate_rps: float, *, num: int, seed: int) -> Outcome:
        """Measure a rate, with more requests where only their number leaves it open.

        Raises:
            _CannotTell: The measurement says nothing about the endpoint.
        """
        probe = self._measure(rate_rps, num, seed)
        most = MOST_REQUESTS * self.num_requests
        if probe.num_needed is not None and num < probe.num_needed <= most:
            # Twice the number: a short run has fewer requests in flight than a long run.
            more = min(2 * probe.num_needed, most)
            logger.info("  %.4g requests/s: again, with %d requests", rate_rps, more)
            probe = self._measure(rate_rps, more, seed + 20_000)
        if probe.num_needed is not None:
            logger.info(
                "  %.4g requests/s: undecided: it needs %d requests; at most %d (%d times the "
                "given number) are sent",
                rate_rps, probe.num_needed, most, MOST_REQUESTS,
            )  # fmt: skip
            self.undecided[rate_rps] = probe.num_needed
        if probe.verdict == Verdict.PASS:
            return "holds"
        return "too low" if probe.is_too_low else "fails"

    def _measure(self, rate_rps: float, num: int, seed: int) -> Probe:
        """Measure a rate, and once more where it is INVALID.

        Raises:
            _CannotTell: It is INVALID twice, or no request succeeded.
        """
        for attempt in range(2):
            result, stopped = measure_rate(
                self.config, self.endpoint, self.prompts, rate_rps, num, seed + 10_000 * attempt
            )
            probe = summarize_rate(rate_rps, result, stopped)
            self.probes.append(probe)
            logger.info(
                "  %.4g requests/s: %s%s", rate_rps, probe.verdict,
                f" ({probe.problems[0]})" if probe.problems else "",
            )  # fmt: skip
            if probe.error_rate == 1.0:
                kinds = ", ".join(result.stats.errors) or "unfinished"
                raise _CannotTell(f"no request succeeded at {rate_rps:.3g} requests/s: {kinds}")
            if probe.verdict != Verdict.INVALID:
                return probe
        raise _CannotTell(
            f"at {rate_rps:.3g} requests/s the measurement is invalid: {probe.problems[0]}"
        )


@dataclass(frozen=True)
class Found:
    """How a search ended."""

    verdict: Verdict
    problems: list[str]
    best: float | None = None
    failing: float | None = None
    num_confirmations: int = 0


def _find(tries: Tries, options: Options) -> Found:
    """Bracket the highest rate, and confirm it with a second run."""
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
            lower = best / (1 + options.precision)
            best = lower if lower >= options.start_rps / LOWEST_SHARE else None
    except _CannotTell as cannot:
        return Found(Verdict.INVALID, [str(cannot)], None, failing, num_confirmations)
    problem = _why_not(best, tries.probes, tries.undecided.get(failing))
    return Found(Verdict.INCONCLUSIVE, [problem], None, failing, num_confirmations)


def _bracketed(tries: Tries, options: Options) -> tuple[float | None, float | None]:
    """Return the highest rate that holds and the lowest above it that fails."""
    rates = bracket(options.start_rps, options.max_rps, options.precision)
    rate = next(rates)
    number = 0
    while True:
        outcome = tries.outcome(rate, num=options.num_requests, seed=tries.config.seed + number)
        number += 1
        try:
            rate = rates.send(outcome)
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
    best, failing, peak = found.best, found.failing, options.peak_rps
    held = [probe.rate_rps for probe in tries.probes if probe.verdict == Verdict.PASS]
    return SearchReport(
        schema_version=SCHEMA_VERSION,
        verdict=found.verdict,
        problems=found.problems,
        endpoint=endpoint_report(endpoint, served),
        inputs=list(inputs),
        slo=config.slo,
        max_rate_rps=best,
        lowest_failing_rate_rps=failing,
        highest_passed_rps=max(held, default=None),
        confirmed=best is not None,
        num_confirmations=found.num_confirmations,
        interval_confidence=CONFIDENCE,
        precision=failing / best - 1 if best and failing else None,
        limited_by=_limited_by(best, failing, failing in tries.undecided),
        capacity=Capacity(
            rate_per_replica_rps=REPLICA_LOAD * best if best else None,
            share_of_max=REPLICA_LOAD,
            peak_rps=peak,
            replicas=replicas(peak, best) if best and peak else None,
        ),
        probes=tries.probes,
        environment=environment_facts(),
    )


def _limited_by(
    best: float | None, failing: float | None, is_undecided: bool
) -> Literal["objectives", "num_requests", "max_rate"] | None:
    """Return `objectives`; or `num_requests` where the rate above only needs more requests, or
    `max_rate` where no rate failed: then the endpoint may hold more."""
    if is_undecided:
        return "num_requests"
    if best is None:
        return None
    return "max_rate" if failing is None else "objectives"


def replicas(peak_rps: float, max_rate_rps: float) -> int:
    """Return the replicas for a peak rate, each loaded to REPLICA_LOAD of its highest rate."""
    return max(1, math.ceil(peak_rps / (REPLICA_LOAD * max_rate_rps)))


def _why_not(best: float | None, probes: Sequence[Probe], num_needed: int | None) -> str:
    """Return why no rate was found."""
    if num_needed is not None:
        return (
            f"too few requests to judge a rate: {num_needed} are needed; expected --requests "
            f"{-(-num_needed // MOST_REQUESTS)} or more"
        )
    lowest = min(probe.rate_rps for probe in probes)
    if all(probe.is_too_low for probe in probes):
        highest = max(probe.rate_rps for probe in probes)
        return f"{highest:.3g} requests/s are too few for the throughput objective"
    if best is None and any(probe.is_too_low for probe in probes):
        return "no rate is high enough for the throughput objective and meets the others"
    if best is None:
        return f"no rate down to {lowest:.3g} requests/s holds"
    return f"no rate held twice in {MAX_CONFIRMATIONS} tries"
