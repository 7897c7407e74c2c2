"""The highest rate that an endpoint holds, and latency against rate."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loadtest.calibration.calibrate import calibrate
from loadtest.client.processes import Counters
from loadtest.config import LoadTestConfig, Scenario
from loadtest.judging.intervals import CONFIDENCE, num_to_tell_share
from loadtest.judging.statistics import MIN_VALUES, Statistics
from loadtest.judging.verdict import Judgement, Verdict, worst
from loadtest.report.build import SCHEMA_VERSION, Result, endpoint_document, scenario_document
from loadtest.report.terminal import plot_rates
from loadtest.run import measure_scenario, probe_artifact
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint, split_url
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ConfigError
from tuneline.core.messages import Messages
from tuneline.core.progress import logger

MAX_RATES = 16
MAX_CONFIRMATIONS = 5
NUM_HOPELESS = 30
"""So many failures without one answer, and the endpoint is not there."""
MOST_REQUESTS = 10
"""A probe that too few requests leave undecided is run again with the number that is needed, up to
this many times the given one."""
FLOORS = {"min_request_throughput_rps", "min_output_throughput_tps", "min_goodput_rps"}
"""Objectives that a low rate cannot meet."""
MIN_KEPT_SHARE = 0.7
"""An endpoint that answers this share of what is offered inside the window keeps up with it."""
REPLICA_LOAD = 0.7
"""Share of the highest rate that a replica is planned for."""


Outcome = Literal["holds", "fails", "too low"]


@dataclass(frozen=True)
class Probe:
    """One rate tried."""

    rate_rps: float
    verdict: Verdict
    stopped_early: bool
    num_requests: int
    ttft_p90_s: float | None
    tpot_p90_s: float | None
    e2e_p90_s: float | None
    output_tokens_per_s: float | None
    error_rate: float
    problems: list[str]
    num_needed: int | None = None
    """Requests that a verdict needs, where it is INCONCLUSIVE for want of them."""
    is_too_low: bool = False
    """Nothing but a floor of throughput was missed, and the endpoint kept up."""


def search(
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

    Doubles from `start_rps` until a rate fails, bisects between the last that passes (or is too low
    for a floor of throughput) and the first that fails until they are `precision` apart, and runs
    the winner again, twice as long and with another schedule: the best of several tries is
    otherwise too good. INCONCLUSIVE counts as failed, but where an objective only wants more
    requests the rate is tried once more with enough, up to MOST_REQUESTS times the given number.
    Steps down where the second run fails. Writes an artifact of kind `load-search`.

    Args:
        config: Objectives, workload and client options; its scenarios are not used.
        endpoint: Where to.
        out: Where the artifact goes.
        prompts: As of `run_loadtest`.
        inputs: As of `run_loadtest`.
        start_rps: The first rate tried.
        max_rps: No higher rate is tried.
        num_requests: Measured requests of each probe.
        precision: Distance of the two final rates, as a share of the lower.
        peak_rps: A rate to say the replicas for.

    Raises:
        ConfigError: No latency, throughput or goodput objective is set, or a rate makes no sense.
        ServerError: As of `run_loadtest`.
    """
    require_objective(config, num_requests)
    if not 0 < start_rps <= max_rps < math.inf or not 0 < precision < math.inf:
        raise ConfigError(
            f"start {start_rps:g}, max {max_rps:g} requests/s, precision {precision:g}: expected "
            "0 < start <= max and a precision above 0"
        )
    if peak_rps is not None and not 0 < peak_rps < math.inf:
        raise ConfigError(f"peak {peak_rps:g} requests/s: expected a rate above 0")
    served = probe_artifact(config, endpoint, inputs)
    resolved = {
        **config.model_dump(mode="json"),
        "search": {"start_rps": start_rps, "max_rps": max_rps, "num_requests": num_requests,
                   "precision": precision},
    }  # fmt: skip
    with new_artifact(out, "load-search", config=resolved, inputs=inputs) as draft:
        probes: list[Probe] = []
        undecided: dict[float | None, int] = {}

        def measured(rate_rps: float, num: int, seed: int) -> Probe:
            """Raises _CannotTell where a probe says nothing of the endpoint, twice."""
            for attempt in range(2):
                result, stopped = _probe(
                    config, endpoint, prompts, rate_rps, num, seed + 10_000 * attempt
                )
                probe = _summary(rate_rps, result, stopped)
                probes.append(probe)
                logger.info(
                    "  %.4g requests/s: %s%s", rate_rps, probe.verdict,
                    f" ({probe.problems[0]})" if probe.problems else "",
                )  # fmt: skip
                if probe.error_rate == 1.0:
                    kinds = ", ".join(result.stats.errors) or "unfinished"
                    raise _CannotTell(f"no request succeeded at {rate_rps:.3g} requests/s: {kinds}")
                if probe.verdict != "INVALID":
                    return probe
            raise _CannotTell(
                f"at {rate_rps:.3g} requests/s the measurement is invalid: {probe.problems[0]}"
            )

        def outcome(rate_rps: float, *, num: int, seed: int) -> Outcome:
            """Notes in `undecided` a rate that the number of requests leaves open."""
            probe = measured(rate_rps, num, seed)
            most = MOST_REQUESTS * num_requests
            if probe.num_needed is not None and num < probe.num_needed <= most:
                # Twice what it takes: a short run has fewer requests in flight than a long one.
                more = min(2 * probe.num_needed, most)
                logger.info("  %.4g requests/s: again, with %d requests", rate_rps, more)
                probe = measured(rate_rps, more, seed + 20_000)
            if probe.num_needed is not None:
                logger.info(
                    "  %.4g requests/s: undecided: it takes %d requests; at most %d (%d times "
                    "the given number) are sent",
                    rate_rps, probe.num_needed, most, MOST_REQUESTS,
                )  # fmt: skip
                undecided[rate_rps] = probe.num_needed
            if probe.verdict == "PASS":
                return "holds"
            return "too low" if probe.is_too_low else "fails"

        best: float | None = None
        failing: float | None = None
        confirmed = False
        num_confirmations = 0
        verdict: Verdict = "INCONCLUSIVE"
        try:
            best, failing = _bracket(outcome, config, num_requests, start_rps, max_rps, precision)
            while best is not None and num_confirmations < MAX_CONFIRMATIONS:
                num_confirmations += 1
                seed = config.seed + 1000 + len(probes)
                if outcome(best, num=2 * num_requests, seed=seed) == "holds":
                    confirmed = True
                    break
                failing = best
                lower = best / (1 + precision)
                best = lower if lower >= start_rps / 8 else None
            problems = [] if confirmed else [_why_not(best, probes, undecided.get(failing))]
            verdict = "PASS" if confirmed else "INCONCLUSIVE"
        except _CannotTell as cannot:
            verdict, problems, best = "INVALID", [str(cannot)], None
        held = [probe.rate_rps for probe in probes if probe.verdict == "PASS"]
        document = {
            "schema_version": SCHEMA_VERSION,
            "verdict": verdict,
            "problems": problems,
            "endpoint": endpoint_document(endpoint, served),
            "inputs": [entry.model_dump() for entry in inputs],
            "slo": config.slo.model_dump(mode="json", exclude_none=True),
            "max_rate_rps": best if confirmed else None,
            "lowest_failing_rate_rps": failing,
            "highest_passed_rps": max(held, default=None),
            "confirmed": confirmed,
            "num_confirmations": num_confirmations,
            "interval_confidence": CONFIDENCE,
            "precision": failing / best - 1 if confirmed and best and failing else None,
            "limited_by": _limited_by(confirmed, failing, failing in undecided),
            "capacity": {
                "rate_per_replica_rps": REPLICA_LOAD * best if confirmed and best else None,
                "share_of_max": REPLICA_LOAD,
                "peak_rps": peak_rps,
                "replicas": replicas(peak_rps, best) if confirmed and best and peak_rps else None,
            },
            "probes": [asdict(probe) for probe in probes],
            "environment": environment_facts(),
        }
        _write(document, draft.dir)
        plot_rates([asdict(probe) for probe in probes], draft.dir)
        draft.metrics.update(
            {name: document[name] for name in ("verdict", "problems", "max_rate_rps", "capacity")}
        )
    return open_artifact(out)


class _CannotTell(Exception):
    """The search stops: what it would bisect on is not the endpoint's doing."""


def _limited_by(confirmed: bool, failing: float | None, is_undecided: bool) -> str | None:
    """`objectives`, `num_requests` where the rate above only wanted more requests, or `max_rate`
    where no rate failed; in the last two cases the endpoint may hold more."""
    if is_undecided:
        return "num_requests"
    if not confirmed:
        return None
    return "max_rate" if failing is None else "objectives"


def replicas(peak_rps: float, max_rate_rps: float) -> int:
    """Replicas for a peak rate, each loaded to REPLICA_LOAD of what it was found to hold."""
    return max(1, math.ceil(peak_rps / (REPLICA_LOAD * max_rate_rps)))


def sweep(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    *,
    prompts: Sequence[Messages],
    rates_rps: Sequence[float],
    inputs: Sequence[Input] = (),
    num_requests: int = 300,
) -> Artifact:
    """Measure each rate and draw latency and throughput against it; artifact `load-sweep`.

    Raises:
        ConfigError: No rates, or one that is not above 0.
        ServerError: As of `run_loadtest`.
    """
    if not rates_rps or not all(0 < rate_rps < math.inf for rate_rps in rates_rps):
        raise ConfigError("a sweep needs at least one rate above 0", hint="Try: --rates 1,2,4,8")
    served = probe_artifact(config, endpoint, inputs)
    rates = sorted({float(f"{rate_rps:.4g}") for rate_rps in rates_rps})  # as they are called
    resolved = {
        **config.model_dump(mode="json"),
        "sweep": {"rates_rps": rates, "num_requests": num_requests},
    }
    with new_artifact(out, "load-sweep", config=resolved, inputs=inputs) as draft:
        scenarios, probes = [], []
        for number, rate_rps in enumerate(rates):
            seed = config.seed + number
            result, _ = _probe(config, endpoint, prompts, rate_rps, num_requests, seed, early=False)
            probe = _summary(rate_rps, result, False)
            probes.append(probe)
            scenarios.append(scenario_document(config, result))
            result.records.save(draft.dir / f"records-{result.scenario.name}.npz")
            logger.info("  %.4g requests/s: %s", rate_rps, probe.verdict)
        document = {
            "schema_version": SCHEMA_VERSION,
            "verdict": worst([probe.verdict for probe in probes]),
            "problems": [
                f"{probe.rate_rps:g} requests/s: {problem}"
                for probe in probes
                for problem in probe.problems
            ],
            "endpoint": endpoint_document(endpoint, served),
            "inputs": [entry.model_dump() for entry in inputs],
            "scenarios": scenarios,
            "probes": [asdict(probe) for probe in probes],
            "environment": environment_facts(),
        }
        _write(document, draft.dir)
        plot_rates([asdict(probe) for probe in probes], draft.dir)
        draft.metrics.update(
            verdict=document["verdict"],
            problems=document["problems"],
            rates={str(p.rate_rps): p.verdict for p in probes},
        )
    return open_artifact(out)


def _bracket(
    outcome: Callable[..., Outcome],
    config: LoadTestConfig,
    num_requests: int,
    start_rps: float,
    max_rps: float,
    precision: float,
) -> tuple[float | None, float | None]:
    """The highest rate seen to hold and the lowest above it seen to fail."""
    best: float | None = None
    failing: float | None = None
    lower: float | None = None
    """The highest rate from which the search goes up: it holds, or is too low for a floor."""
    rate = start_rps
    for number in range(MAX_RATES):
        found = outcome(rate, num=num_requests, seed=config.seed + number)
        if found == "holds":
            best = lower = rate
        elif found == "too low" and best is None:
            lower = rate
        else:
            failing = rate
        if lower is None:
            if rate < start_rps / 8:
                return None, failing  # not even an eighth of the first rate
            rate = rate / 2
        elif failing is None:
            if lower >= max_rps:
                return best, None
            rate = min(2 * lower, max_rps)
        elif failing / lower - 1 <= precision:
            return best, failing
        else:
            rate = math.sqrt(lower * failing)
    return best, failing


def _probe(
    config: LoadTestConfig,
    endpoint: Endpoint,
    prompts: Sequence[Messages],
    rate_rps: float,
    num_requests: int,
    seed: int,
    *,
    early: bool = True,
) -> tuple[Result, bool]:
    name = f"rate-{rate_rps:.4g}".replace(".", "-").replace("+", "")
    values = {"name": name, "rate_rps": rate_rps, "num_requests": num_requests}
    scenario = validate_config(Scenario, values, "options")
    stopped = False
    limit = _most_in_flight(config, rate_rps)

    def give_up(counters: Counters) -> bool:
        nonlocal stopped
        too_many_failed = counters.num_failed > max(
            0.5 * num_requests, 2 * (config.slo.max_error_rate or 0.0) * num_requests
        )
        if counters.num_failed >= NUM_HOPELESS and not counters.num_answered:
            stopped = True
        if early and (counters.num_in_flight > limit or too_many_failed):
            stopped = True
        return stopped

    tls = split_url(endpoint.url).scheme == "https"
    calibration = calibrate(config, scenario, tls=tls) if config.calibrate else None
    result = measure_scenario(
        config, scenario, endpoint, prompts, seed=seed, give_up=give_up, calibration=calibration
    )
    return result, stopped


def _most_in_flight(config: LoadTestConfig, rate_rps: float) -> float:
    """More requests than this at once cannot meet the objectives any more: by Little's law they
    would have to take four times the slowest allowed."""
    slo = config.slo
    slowest = slo.e2e_p99_s or slo.e2e_p90_s or slo.e2e_p50_s or slo.goodput_e2e_s
    if slowest is None:
        slowest = config.timeout_s / 4
    return max(4 * slowest * rate_rps, 50.0)


def _summary(rate_rps: float, result: Result, stopped: bool) -> Probe:
    """A probe that was stopped has failed, unless the client was the reason."""
    stats, judgement = result.stats, result.judgement
    failed = stopped and not judgement.is_worth_repeating
    return Probe(
        rate_rps=rate_rps,
        verdict="FAIL" if failed else judgement.verdict,
        stopped_early=stopped,
        num_requests=stats.num_offered,
        ttft_p90_s=stats.latencies["ttft_s"].p90,
        tpot_p90_s=stats.latencies["tpot_s"].p90,
        e2e_p90_s=stats.latencies["e2e_s"].p90,
        output_tokens_per_s=stats.throughput.output_tokens_per_s,
        error_rate=stats.failed.value,
        problems=judgement.problems,
        num_needed=None if failed else _num_needed(stats, judgement),
        is_too_low=not stopped and _is_too_low(stats, judgement),
    )


def _is_too_low(stats: Statistics, judgement: Judgement) -> bool:
    missed = {one.name for one in judgement.objectives if one.verdict != "PASS"}
    offered, succeeded = stats.throughput.offered_rps, stats.throughput.succeeded_rps
    return (
        bool(missed)
        and missed <= FLOORS
        and not stats.steady_state.growing
        and (succeeded or 0.0) >= MIN_KEPT_SHARE * (offered or 0.0)
        and (stats.good is None or stats.good.value >= MIN_KEPT_SHARE)
    )


def _num_needed(stats: Statistics, judgement: Judgement) -> int | None:
    """Requests that it takes at least to tell whether every objective holds; None where there is
    another reason why they do not."""
    if judgement.verdict != "INCONCLUSIVE" or stats.steady_state.growing:
        return None
    open_ones = [one for one in judgement.objectives if one.verdict == "INCONCLUSIVE"]
    needed = [
        # A request may give no value, such as an answer of one token its TPOT.
        math.ceil(one.num_needed * stats.num_offered / max(one.n, 1))
        for one in open_ones
        if one.num_needed is not None
    ]
    return max(needed) if needed and len(needed) == len(open_ones) else None


def _why_not(best: float | None, probes: Sequence[Probe], num_needed: int | None) -> str:
    if num_needed is not None:
        return (
            f"too few requests to judge a rate by: {num_needed} are needed; with --requests "
            f"{-(-num_needed // MOST_REQUESTS)} or more they are sent"
        )
    if all(probe.is_too_low for probe in probes):
        highest = max(probe.rate_rps for probe in probes)
        return f"{highest:.3g} requests/s are too few for the throughput that is wanted"
    if best is None and any(probe.is_too_low for probe in probes):
        return "no rate is high enough for the throughput that is wanted and holds the rest"
    if best is None:
        return f"no rate down to {min(probe.rate_rps for probe in probes):.3g} requests/s holds"
    return f"no rate held twice in {MAX_CONFIRMATIONS} tries"


def require_objective(config: LoadTestConfig, num_requests: int) -> None:
    """Refuse a search that could not end in a rate.

    Raises:
        ConfigError: No latency, throughput or goodput objective is set, or a percentile's or a
            share's is that `num_requests` cannot judge.
    """
    slo = config.slo.model_dump(exclude_none=True)
    limits = {name for name in slo if name.startswith("goodput_")}
    given = slo.keys() - limits - {"max_error_rate"}
    if limits and not given:
        raise ConfigError(
            f"the search needs an objective: {', '.join(sorted(limits))} only says which requests "
            "are good, not how many must be",
            hint="Try: --set loadtest.slo.min_goodput_share=0.9",
        )
    if not given:
        raise ConfigError(
            "the search needs an objective besides max_error_rate",
            hint="Try: --set loadtest.slo.ttft_p90_s=0.5",
        )
    for q, needed in MIN_VALUES.items():
        names = [name for name in given if name.endswith(f"_p{q}_s")]
        if names and num_requests < needed:
            raise ConfigError(
                f"{num_requests} requests a probe cannot judge {names[0]}: at least {needed} are "
                "needed",
                hint=f"Try: --requests {needed}",
            )
    for name, best, decides in (
        ("max_error_rate", 0.0, "0.0: none may fail"),
        ("min_goodput_share", 1.0, "1.0: none may be slower"),
    ):
        limit = slo.get(name)
        if limit is None or limit == best:
            continue
        needed = num_to_tell_share(best, limit)
        if num_requests < needed:
            raise ConfigError(
                f"{num_requests} requests a probe cannot judge {name} {limit:g}: at least {needed} "
                "are needed",
                hint=f"Try: --requests {needed}, or a {name} of {decides}",
            )


def _write(document: dict[str, Any], directory: Path) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")
