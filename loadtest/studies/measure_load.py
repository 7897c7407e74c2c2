"""One load of a study, measured and summarized."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from loadtest.client.plan import Plan
from loadtest.client.processes import Counters
from loadtest.client.records import SUCCEEDED
from loadtest.config import SLO, LoadTestConfig, Scenario
from loadtest.judging.intervals import (
    MIN_BLOCKS,
    block_length,
    correlated_block,
    paired_difference,
)
from loadtest.judging.latency import OF_TOKENS
from loadtest.judging.statistics import Statistics
from loadtest.judging.verdict import Judgement
from loadtest.measure import GiveUp, measure_scenario
from loadtest.report.build import Result
from loadtest.studies.load import Load
from loadtest.studies.schema import METRICS, Probe
from tuneline.core.config import validate_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.messages import ChatPrompt
from tuneline.core.verdict import Verdict

NUM_HOPELESS = 30
"""After so many failures and no answer, the endpoint is not there."""
FLOORS = {
    name for name in SLO.model_fields if name.startswith("min_") and name.endswith(("_rps", "_tps"))
}
"""Objectives that a low load cannot meet: the least rates."""
MIN_KEPT_SHARE = 0.7
"""An endpoint keeps up with a load when it answers this share of it inside the window."""
TIMES_TOO_SLOW = 4
"""A load is given up when requests take so many times the slowest time that is allowed."""


def measure_load(
    config: LoadTestConfig,
    endpoint: Endpoint,
    prompts: Sequence[ChatPrompt],
    load: Load,
    num_requests: int,
    seed: int,
    *,
    early: bool = True,
) -> tuple[Result, bool]:
    """Measure a Poisson open loop or a closed loop; return the result and whether it was stopped
    early.

    Args:
        early: Stop when more requests are in flight, have failed or take longer than the objectives
            allow.
    """
    values = {
        "name": load.name,
        "rate_rps": load.rate_rps,
        "concurrency": load.concurrency,
        "num_requests": num_requests,
    }
    scenario = validate_config(Scenario, values, "options")
    stopped = False

    def give_up(plan: Plan) -> GiveUp:
        begun_s = time.monotonic()
        most, longest_s = most_in_flight(config, load, plan), longest_run_s(config, load, plan)

        most_failed = max(0.5, 2 * (config.slo.max_error_rate or 0.0)) * num_requests

        def watch(counters: Counters) -> bool:
            nonlocal stopped
            is_too_much = (
                counters.num_in_flight > most
                or time.monotonic() - begun_s > longest_s
                or counters.num_failed > most_failed
            )
            is_hopeless = counters.num_failed >= NUM_HOPELESS and not counters.num_answered
            stopped = stopped or is_hopeless or (early and is_too_much)
            return stopped

        return watch

    result = measure_scenario(config, scenario, endpoint, prompts, seed=seed, give_up=give_up)
    return result, stopped


def most_in_flight(config: LoadTestConfig, load: Load, plan: Plan) -> float:
    """Return the requests in flight that rule out the objectives in an open loop, by Little's
    law. A closed loop has a fixed number of them."""
    if load.rate_rps is None:
        return math.inf
    return max(TIMES_TOO_SLOW * _slowest_s(config) * load.rate_rps * _turns(plan), 50.0)


def longest_run_s(config: LoadTestConfig, load: Load, plan: Plan) -> float:
    """Return the seconds of a closed loop that rule out the objectives. Conversations take their
    turns one after another, with delays in between."""
    if load.rate_rps is not None or plan.num_requests is None:
        return math.inf
    num_rounds = math.ceil(plan.num_requests / load.value) + 1
    delays_s = 0.0 if plan.sessions is None else plan.sessions.longest_delay_s
    round_s = TIMES_TOO_SLOW * _slowest_s(config) * _turns(plan) + delays_s
    return max(round_s * num_rounds, 30.0)


def _turns(plan: Plan) -> float:
    return 1.0 if plan.sessions is None else plan.sessions.mean_turns


def _slowest_s(config: LoadTestConfig) -> float:
    return _slowest_allowed(config.slo) or config.timeout_s / TIMES_TOO_SLOW


def _slowest_allowed(slo: SLO) -> float | None:
    """Return the end-to-end limit of the highest percentile, or the goodput limit."""
    limits = slo.latency.get("e2e_s", {})
    return limits[max(limits)] if limits else slo.goodput_e2e_s


def summarize_load(load: Load, result: Result, stopped: bool) -> Probe:
    """Summarize a measured load. A load that was stopped has failed, unless the client was the
    reason."""
    stats, judgement = result.stats, result.judgement
    failed = stopped and not judgement.is_worth_repeating
    e2e_s, e2e_ci95 = mean_e2e(result)
    return Probe(
        rate_rps=load.rate_rps,
        concurrency=load.concurrency,
        verdict=Verdict.FAIL if failed else judgement.verdict,
        stopped_early=stopped,
        num_requests=stats.num_offered,
        latency={
            metric: stats.latencies[metric].percentiles
            for metric in METRICS
            if result.of_tokens or metric not in OF_TOKENS
        },
        output_tokens_per_s=stats.throughput.output_tokens_per_s,
        succeeded_rps=stats.throughput.succeeded_rps,
        mean_e2e_s=e2e_s,
        mean_e2e_s_ci95=e2e_ci95,
        error_rate=stats.failed.value,
        problems=judgement.problems,
        num_needed=None if failed else _num_needed(result),
        is_too_low=not stopped and _is_too_low(stats, judgement),
    )


def mean_e2e(result: Result) -> tuple[float | None, tuple[float, float] | None]:
    """Return the mean end-to-end latency of the succeeded requests, seconds, with its 95 %
    moving-block interval; without an interval if there are too few requests for one."""
    records = result.records
    ok = records.select((records.state == SUCCEEDED) & ~records.warmup)
    if not len(ok):
        return None, None
    order = np.argsort(ok.intended_s, kind="stable")
    values = (ok.last_token_s - ok.intended_s)[order]
    block = correlated_block(values, block_length(result.stats.mean_in_flight or 1.0))
    if len(values) < MIN_BLOCKS * block:
        return float(np.mean(values)), None
    mean, low, high = paired_difference(values, block)
    return mean, (low, high)


def _is_too_low(stats: Statistics, judgement: Judgement) -> bool:
    """Return whether the load missed only floors of throughput, and the endpoint kept up."""
    missed = {one.name for one in judgement.objectives if one.verdict != Verdict.PASS}
    offered, succeeded = stats.throughput.offered_rps, stats.throughput.succeeded_rps
    return (
        bool(missed)
        and missed <= FLOORS
        and not stats.steady_state.growing
        and (succeeded or 0.0) >= MIN_KEPT_SHARE * (offered or 0.0)
        and (stats.good is None or stats.good.value >= MIN_KEPT_SHARE)
    )


def _num_needed(result: Result) -> int | None:
    """Return how many requests, or conversations, a verdict on every objective needs at least;
    None if there is another reason for the lack of a verdict."""
    stats, judgement, records = result.stats, result.judgement, result.records
    if judgement.verdict != Verdict.INCONCLUSIVE or stats.steady_state.growing:
        return None
    open_ones = [one for one in judgement.objectives if one.verdict == Verdict.INCONCLUSIVE]
    # Without conversations, each request is a session of its own.
    num_arrivals = len(np.unique(records.session[~records.warmup]))
    needed = [
        # A request may have no value: an answer of one token has no TPOT.
        math.ceil(one.num_needed * num_arrivals / max(one.n, 1))
        for one in open_ones
        if one.num_needed is not None
    ]
    return max(needed) if needed and len(needed) == len(open_ones) else None
