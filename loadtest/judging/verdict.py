"""PASS, FAIL, INCONCLUSIVE or INVALID, and why. Pure.

INVALID: the client was the bottleneck or the numbers contradict themselves; they say nothing of the
server, good or bad. FAIL: an objective is not met. INCONCLUSIVE: too few requests to say. In this
order; PASS is what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loadtest.calibration.calibrate import Calibration
from loadtest.config import SLO, LoadTestConfig
from loadtest.judging.intervals import lies_below, num_to_tell_share
from loadtest.judging.statistics import PERCENTILES, Figure, Share, Statistics, Throughput

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]

SEVERITY: tuple[Verdict, ...] = ("INVALID", "FAIL", "INCONCLUSIVE", "PASS")

MIN_LAG_BUDGET_S = 0.002
LAG_SHARE_OF_OBJECTIVE = 0.02
MAX_RATE_DIFFERENCE = 0.01
MAX_CV_DIFFERENCE = 0.05
MAX_DISPERSION_DIFFERENCE = 0.25
MAX_MERGED_SHARE = 0.05
MAX_USUAL_LAG_S = 0.05
MAX_HIT_RATE_DIFFERENCE = 0.05
MAX_STEAL_SHARE = 0.1
MAX_THROTTLED_SHARE = 0.01


@dataclass(frozen=True)
class Objective:
    """One SLO and what was found."""

    name: str
    limit: float
    measured: float | None
    """Null where it is infinite or withheld."""
    unit: str
    n: int
    verdict: Verdict
    reason: str
    num_needed: int | None = None
    """Values that a verdict needs at least, where too few are why it is INCONCLUSIVE."""


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    problems: list[str]
    """Why it is not PASS."""
    warnings: list[str]
    objectives: list[Objective]
    is_worth_repeating: bool
    """INVALID for nothing but the client's and the host's state at that time."""


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    return min(verdicts, key=SEVERITY.index)


def judge(
    config: LoadTestConfig,
    slo: SLO,
    stats: Statistics,
    client: dict[str, Any],
    *,
    open_loop: bool,
    calibration: Calibration | None = None,
    prefix_hit_rate: float | None = None,
) -> Judgement:
    """Hold a scenario's figures against its objectives and against the client's own limits."""
    of_client, warnings = _client(config, slo, stats, client, open_loop)
    if calibration is not None:
        of_client += calibration_problems(
            calibration, lag_budget_s(config, slo, stats.latencies["e2e_s"].p50)
        )
    of_answers, more = _answers(config, slo, stats)
    warnings += more
    declared = config.workload.prefix_hit_rate
    if declared is not None:
        of_answers += _hit_rate(declared, prefix_hit_rate)
    invalid = of_client + of_answers
    objectives = _objectives(slo, stats)
    missed = [f"{o.name}: {o.reason}" for o in objectives if o.verdict != "PASS"]
    verdict = worst(["PASS", *(objective.verdict for objective in objectives)])
    if open_loop and stats.steady_state.growing:
        missed.append(
            f"latency grew by {stats.steady_state.growth or 0:.0%} over the run and had not "
            "settled: the endpoint does not keep up with this rate"
        )
        verdict = worst([verdict, "INCONCLUSIVE"])
    if not stats.steady_state.found:
        warnings.append("no steady part was found: the run may be too short")
    return Judgement(
        verdict="INVALID" if invalid else verdict,
        problems=invalid + missed,
        warnings=warnings,
        objectives=objectives,
        is_worth_repeating=bool(of_client) and not of_answers,
    )


def lag_budget_s(config: LoadTestConfig, slo: SLO, e2e_p50_s: float | None = None) -> float:
    """What the client may add before its lag could decide an objective; without objectives, before
    it shows in the median end-to-end latency."""
    if config.max_client_lag_s is not None:
        return config.max_client_lag_s
    limits = [
        limit
        for name in ("ttft", "e2e")
        for q in PERCENTILES
        if (limit := getattr(slo, f"{name}_p{q}_s")) is not None
    ]
    limits += [limit for limit in (slo.goodput_ttft_s, slo.goodput_e2e_s) if limit is not None]
    scale = min(limits, default=e2e_p50_s or 0.0)
    return max(MIN_LAG_BUDGET_S, LAG_SHARE_OF_OBJECTIVE * scale)


def _client(
    config: LoadTestConfig, slo: SLO, stats: Statistics, client: dict[str, Any], open_loop: bool
) -> tuple[list[str], list[str]]:
    """Problems and warnings: did the client send and read in time, and the load that was asked?"""
    problems: list[str] = []
    warnings: list[str] = []
    budget_s = lag_budget_s(config, slo, stats.latencies["e2e_s"].p50)
    send_lag_s = stats.send_lag.p99 or 0.0
    if send_lag_s > budget_s:
        problems.append(
            f"the client sent late: p99 of its send lag is {send_lag_s * 1e3:.1f} ms, at most "
            f"{budget_s * 1e3:.1f} ms is allowed"
        )
    # The kernel stamps reads by itself; then a late loop does harm only where it lets events run
    # together, that is where it is later than they are apart.
    loop_lag_s = client["loop_lag_s"].p99 or 0.0
    kernel_clock = client["num_reads_kernel_clock"] == client["num_reads"] > 0
    gap_s = stats.latencies["inter_chunk_gap_s"].p50
    loop_budget_s = max(budget_s, gap_s or 0.0) if kernel_clock else budget_s
    if loop_lag_s > loop_budget_s:
        problems.append(
            f"the client was busy: p99 of its loop lag is {loop_lag_s * 1e3:.1f} ms, at most "
            f"{loop_budget_s * 1e3:.1f} ms is allowed"
        )
    merged = stats.tokens.num_merged_events
    if merged > MAX_MERGED_SHARE * max(stats.tokens.num_events, 1):
        # A server may write several at once; the client let them run together where it read later
        # than they are apart.
        read_lag_s = client["read_lag_s"].p99 or 0.0
        is_ours = read_lag_s > max(budget_s, stats.latencies["inter_chunk_gap_s"].p90 or 0.0)
        (problems if is_ours else warnings).append(
            f"{merged} of {stats.tokens.num_events} events came together with the one before: "
            "their own times are lost (tpot_s is not touched, inter_chunk_gap_s is)"
            + (f"; the client read up to {read_lag_s * 1e3:.1f} ms late" if is_ours else "")
        )
    if config.max_client_lag_s is not None and config.max_client_lag_s > MAX_USUAL_LAG_S:
        warnings.append(
            f"max_client_lag_s grants the client {config.max_client_lag_s * 1e3:g} ms of lag and "
            "widens what arrivals may differ by: not for a release decision"
        )
    exhausted = stats.errors.get("client_exhausted", 0)
    if exhausted:
        problems.append(
            f"the client ran out of sockets or ports: {exhausted} requests were not sent"
        )
    if open_loop and stats.num_offered > 10:
        problems += _arrivals(stats, config.max_client_lag_s or 0.0)
    return problems + _host(client), warnings


def _answers(config: LoadTestConfig, slo: SLO, stats: Statistics) -> tuple[list[str], list[str]]:
    """Problems and warnings: are all requests accounted for, and do their tokens add up?"""
    problems: list[str] = []
    warnings: list[str] = []
    total = stats.num_succeeded + stats.num_failed + stats.num_unfinished
    if total != stats.num_offered:
        problems.append(f"{stats.num_offered} requests offered, {total} accounted for")
    tokens = stats.tokens
    needs_tokens = any(
        getattr(slo, name) is not None
        for name in ("tpot_p50_s", "tpot_p90_s", "tpot_p99_s", "min_output_throughput_tps",
                     "goodput_tpot_s")
    )  # fmt: skip
    if tokens.num_without_usage:
        text = f"{tokens.num_without_usage} answers carry no usage: their tokens are not known"
        (problems if needs_tokens else warnings).append(text)
        if config.ignore_eos:
            problems.append("the exact lengths of ignore_eos cannot be checked without usage")
    if tokens.num_more_events_than_tokens:
        problems.append(
            f"{tokens.num_more_events_than_tokens} answers have more text events than tokens by "
            "the server's usage"
        )
    if tokens.num_wrong_length:
        problems.append(
            f"{tokens.num_wrong_length} answers have not exactly {config.max_tokens} tokens, as "
            "ignore_eos asks"
        )
    if tokens.num_first_tokens_estimated:
        warnings.append(
            f"{tokens.num_first_tokens_estimated} answers hold several tokens per event without a "
            "count in each: their tpot_s takes the mean for the first"
        )
    return problems, warnings


def calibration_problems(calibration: Calibration, budget_s: float) -> list[str]:
    """Does the client add too much at this load, by the server of known delays?"""
    problems = [f"calibration: {problem}" for problem in calibration.problems]
    for name in ("ttft_bias_p50_s", "ttft_bias_p90_s"):
        bias_s = getattr(calibration, name)
        if bias_s is not None and abs(bias_s) > budget_s:
            problems.append(
                f"calibration: {name} is {bias_s * 1e3:.1f} ms, at most {budget_s * 1e3:.1f} ms "
                "is allowed"
            )
    return problems


def _hit_rate(declared: float, found: float | None) -> list[str]:
    if found is None:
        return ["prefix_hit_rate is declared, and the server does not report one"]
    if abs(found - declared) <= MAX_HIT_RATE_DIFFERENCE:
        return []
    return [
        f"the prefix cache answered {found:.0%} of the prompt tokens, {declared:.0%} was declared"
    ]


def _arrivals(stats: Statistics, granted_lag_s: float) -> list[str]:
    """Was the load that arrived the load that was scheduled?

    A lag that the user grants the client moves arrivals by that much: its share of a gap is granted
    too, and its share of the run for the rate.
    """
    problems = []
    scheduled, delivered = stats.arrivals_scheduled, stats.arrivals_delivered
    in_gaps = 2 * granted_lag_s * (scheduled.rate_rps or 0.0)
    in_run = in_gaps / max(scheduled.num_arrivals, 1)
    for what, name, allowed, floor in (
        ("requests/s", "rate_rps", MAX_RATE_DIFFERENCE + in_run, 0.0),
        ("as the gaps' coefficient of variation", "gap_cv", MAX_CV_DIFFERENCE + in_gaps, 1.0),
        (
            "as index of dispersion",
            "index_of_dispersion",
            MAX_DISPERSION_DIFFERENCE + in_gaps,
            1.0,
        ),
    ):
        wanted, found = getattr(scheduled, name), getattr(delivered, name)
        if wanted is None or found is None:
            continue
        if abs(found - wanted) > allowed * max(wanted, floor):
            problems.append(f"delivered {found:.3g} {what}, scheduled {wanted:.3g}")
    return problems


def _host(client: dict[str, Any]) -> list[str]:
    problems = []
    for name, allowed, what in (
        ("steal_share", MAX_STEAL_SHARE, "the hypervisor took {:.0%} of the client's CPU time"),
        (
            "throttled_share",
            MAX_THROTTLED_SHARE,
            "a CPU quota stopped the client {:.0%} of the time",
        ),
    ):
        share = client.get(name)
        if share is not None and share > allowed:
            problems.append(what.format(share) + f", at most {allowed:.0%} is allowed")
    return problems


def _objectives(slo: SLO, stats: Statistics) -> list[Objective]:
    found = []
    for metric in ("ttft", "tpot", "e2e"):
        for q in PERCENTILES:
            limit = getattr(slo, f"{metric}_p{q}_s")
            if limit is not None:
                name, figure = f"{metric}_p{q}_s", stats.latencies[f"{metric}_s"]
                found.append(latency_objective(name, limit, figure, stats.within[name], q))
    if slo.max_error_rate is not None:
        found.append(_error_rate(slo.max_error_rate, stats))
    throughput = stats.throughput
    for name, measured, unit in (
        ("min_request_throughput_rps", throughput.succeeded_rps, "1/s"),
        ("min_output_throughput_tps", throughput.output_tokens_per_s, "tokens/s"),
    ):
        limit = getattr(slo, name)
        if limit is not None:
            found.append(_least(name, limit, measured, unit, stats.num_offered))
    if slo.min_goodput_share is not None:
        found.append(_goodput_share(slo.min_goodput_share, stats.good))
    if slo.min_goodput_rps is not None:
        found.append(_goodput_rps(slo.min_goodput_rps, throughput, stats.good))
    return found


def latency_objective(name: str, limit: float, figure: Figure, within: Share, q: int) -> Objective:
    """A percentile lies at or below a limit where that share of the requests keeps to it. The
    share's interval decides; or the percentile, where all keep to it and it is far below."""
    value = figure.percentile(q)
    if value is None:
        withheld = figure.withheld.get(f"p{q}", "")
        verdict: Verdict = "FAIL" if withheld.startswith("infinite") else "INCONCLUSIVE"
        return Objective(name, limit, None, "s", figure.n, verdict, f"{withheld} (N = {figure.n})")
    reason = f"{value:.4g} s, at most {limit:g} s is allowed (N = {figure.n})"
    num_needed = None
    if _is_least(within, q / 100):
        verdict = "PASS"
    elif within.value == 1.0 and lies_below(value, limit, q, within.num_independent):
        verdict = "PASS"
        reason += "; all of the requests keep to it, and it lies far below"
    else:
        verdict = "FAIL" if within.ci95[1] < q / 100 else "INCONCLUSIVE"
        reason += f"; {within.value:.1%} of the requests do, {_interval(within)}, and {q} % must"
    if verdict == "INCONCLUSIVE":
        num_needed = _num_to_tell(within, q / 100)
        reason += f"; it takes at least {num_needed} requests to tell"
    return Objective(name, limit, value, "s", figure.n, verdict, reason, num_needed)


def _error_rate(limit: float, stats: Statistics) -> Objective:
    """Where no failure at all is allowed, those that were seen decide; a larger limit is held
    against the interval of the endpoint's own rate."""
    rate, n = stats.failed.value, stats.num_offered
    count = stats.num_failed + stats.num_unfinished
    kinds = [f"{number} {name}" for name, number in sorted(stats.errors.items())]
    if stats.num_unfinished:
        kinds.append(f"{stats.num_unfinished} unfinished")
    reason = (
        f"{count} of {n} requests failed ({', '.join(kinds) or 'none'}), at most {limit:.2%} is "
        "allowed"
    )
    verdict: Verdict = "FAIL" if count else "PASS"
    num_needed = None
    if limit > 0.0:
        low, high = stats.failed.ci95
        reason += f", {_interval(stats.failed)}"
        verdict = "PASS" if high <= limit else "FAIL" if low > limit else "INCONCLUSIVE"
        if verdict == "INCONCLUSIVE":
            num_needed = _num_to_tell(stats.failed, limit)
            reason += f"; it takes at least {num_needed} requests to tell"
    return Objective("max_error_rate", limit, rate, "1", n, verdict, reason, num_needed)


def _goodput_share(limit: float, good: Share | None) -> Objective:
    """Where every request must be good, those that were seen decide."""
    if good is None:
        return _least("min_goodput_share", limit, None, "1", 0)
    reason = f"{good.value:.2%} of {good.n} requests are good"
    verdict: Verdict = "PASS" if good.value >= limit else "FAIL"
    num_needed = None
    if limit < 1.0:
        reason += f", {_interval(good)}"
        verdict = "FAIL" if good.ci95[1] < limit else "INCONCLUSIVE"
        if _is_least(good, limit):
            verdict = "PASS"
    reason += f"; at least {limit:.2%} are required"
    if verdict == "INCONCLUSIVE":
        num_needed = _num_to_tell(good, limit)
        reason += f"; it takes at least {num_needed} requests to tell"
    return Objective(
        "min_goodput_share", limit, good.value, "1", good.n, verdict, reason, num_needed
    )


def _goodput_rps(limit: float, throughput: Throughput, good: Share | None) -> Objective:
    """The rate is as sure as the share of good requests is: the arrivals are given. Where every one
    of them would have to be good, those that were seen decide."""
    name, measured, offered = "min_goodput_rps", throughput.goodput_rps, throughput.offered_rps
    if good is None or measured is None or not offered:
        return _least(name, limit, None, "1/s", good.n if good else 0)
    share = good.value + (limit - measured) / offered
    if share >= 1.0:
        return _least(name, limit, measured, "1/s", good.n)
    low, high = (max(measured + offered * (bound - good.value), 0.0) for bound in good.ci95)
    verdict: Verdict = "FAIL" if high < limit else "INCONCLUSIVE"
    if low >= limit and good.n >= good.num_needed:
        verdict = "PASS"
    reason = (
        f"{measured:.4g} 1/s, 95 % interval {low:.4g} to {high:.4g}, at least {limit:g} is "
        f"required (N = {good.n})"
    )
    num_needed = None
    if verdict == "INCONCLUSIVE":
        num_needed = _num_to_tell(good, max(share, 0.0))
        reason += f"; it takes at least {num_needed} requests to tell"
    return Objective(name, limit, measured, "1/s", good.n, verdict, reason, num_needed)


def _is_least(share: Share, limit: float) -> bool:
    """Whether the true share is at least that, for sure."""
    return share.n >= share.num_needed and share.ci95[0] >= limit


def _interval(share: Share) -> str:
    low, high = share.ci95
    text = f"95 % interval {low:.2%} to {high:.2%}"
    if share.num_independent < 0.99 * share.n:
        text += f" (requests go together: they count as {share.num_independent:.0f})"
    return text


def _num_to_tell(share: Share, limit: float) -> int:
    """Requests that it takes at least: by the end of the interval that could be told soonest, since
    the share of few is noisy."""
    low, high = share.ci95
    nearest = low if share.value <= limit else high
    needed = 0.0
    if nearest != limit:
        needed = num_to_tell_share(nearest, limit) * share.n / max(share.num_independent, 1.0)
    return max(math.ceil(needed), share.num_needed, share.n + 1)


def _least(name: str, limit: float, measured: float | None, unit: str, n: int) -> Objective:
    if measured is None:
        reason = f"no window to measure it over (N = {n})"
        return Objective(name, limit, None, unit, n, "INCONCLUSIVE", reason)
    verdict: Verdict = "PASS" if measured >= limit else "FAIL"
    reason = f"{measured:.4g} {unit}, at least {limit:g} is required (N = {n})"
    return Objective(name, limit, measured, unit, n, verdict, reason)
