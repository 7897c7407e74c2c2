"""One rate of a search or a sweep: measured, and summarized."""

from __future__ import annotations

import math
from collections.abc import Sequence

from loadtest.client.processes import Counters
from loadtest.config import SLO, LoadTestConfig, Scenario
from loadtest.judging.statistics import Statistics
from loadtest.judging.verdict import Judgement
from loadtest.measure import measure_scenario
from loadtest.report.build import Result
from loadtest.studies.schema import METRICS, Probe
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.messages import Messages
from tuneline.core.verdict import Verdict

NUM_HOPELESS = 30
"""After so many failures and no answer, the endpoint is not there."""
FLOORS = {"min_request_throughput_rps", "min_output_throughput_tps", "min_goodput_rps"}
"""Objectives that a low rate cannot meet."""
MIN_KEPT_SHARE = 0.7
"""An endpoint keeps up with a rate when it answers this share of it inside the window."""


def measure_rate(
    config: LoadTestConfig,
    endpoint: Endpoint,
    prompts: Sequence[Messages],
    rate_rps: float,
    num_requests: int,
    seed: int,
    *,
    early: bool = True,
) -> tuple[Result, bool]:
    """Measure a Poisson open loop; return the result and whether it was stopped early.

    Args:
        early: Stop when more requests are in flight, or have failed, than the objectives allow.
    """
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

    result = measure_scenario(config, scenario, endpoint, prompts, seed=seed, give_up=give_up)
    return result, stopped


def _most_in_flight(config: LoadTestConfig, rate_rps: float) -> float:
    """Return how many requests in flight rule out the objectives: by Little's law they take four
    times the slowest time that is allowed."""
    slowest = _slowest_allowed(config.slo)
    if slowest is None:
        slowest = config.timeout_s / 4
    return max(4 * slowest * rate_rps, 50.0)


def _slowest_allowed(slo: SLO) -> float | None:
    """Return the end-to-end limit of the highest percentile, or the goodput limit."""
    limits = slo.latency.get("e2e_s", {})
    return limits[max(limits)] if limits else slo.goodput_e2e_s


def summarize_rate(rate_rps: float, result: Result, stopped: bool) -> Probe:
    """Summarize a measured rate. A rate that was stopped has failed, unless the client was the
    reason."""
    stats, judgement = result.stats, result.judgement
    failed = stopped and not judgement.is_worth_repeating
    return Probe(
        rate_rps=rate_rps,
        verdict=Verdict.FAIL if failed else judgement.verdict,
        stopped_early=stopped,
        num_requests=stats.num_offered,
        latency={metric: stats.latencies[metric].percentiles for metric in METRICS},
        output_tokens_per_s=stats.throughput.output_tokens_per_s,
        error_rate=stats.failed.value,
        problems=judgement.problems,
        num_needed=None if failed else _num_needed(stats, judgement),
        is_too_low=not stopped and _is_too_low(stats, judgement),
    )


def _is_too_low(stats: Statistics, judgement: Judgement) -> bool:
    """Return whether the rate missed only floors of throughput, and the endpoint kept up."""
    missed = {one.name for one in judgement.objectives if one.verdict != Verdict.PASS}
    offered, succeeded = stats.throughput.offered_rps, stats.throughput.succeeded_rps
    return (
        bool(missed)
        and missed <= FLOORS
        and not stats.steady_state.growing
        and (succeeded or 0.0) >= MIN_KEPT_SHARE * (offered or 0.0)
        and (stats.good is None or stats.good.value >= MIN_KEPT_SHARE)
    )


def _num_needed(stats: Statistics, judgement: Judgement) -> int | None:
    """Return how many requests a verdict on every objective needs at least; None where there is
    another reason for the lack of a verdict."""
    if judgement.verdict != Verdict.INCONCLUSIVE or stats.steady_state.growing:
        return None
    open_ones = [one for one in judgement.objectives if one.verdict == Verdict.INCONCLUSIVE]
    needed = [
        # A request may have no value: an answer of one token has no TPOT.
        math.ceil(one.num_needed * stats.num_offered / max(one.n, 1))
        for one in open_ones
        if one.num_needed is not None
    ]
    return max(needed) if needed and len(needed) == len(open_ones) else None
