"""Each objective and its verdict: PASS, FAIL or INCONCLUSIVE. Pure."""

from __future__ import annotations

import math

from loadtest.config import SLO
from loadtest.judging.intervals import lies_below, num_to_tell_share
from loadtest.judging.latency import INFINITE
from loadtest.judging.statistics import Statistics, objective_name
from loadtest.percentiles import name_of, num_needed
from loadtest.report.part import Distribution, Share
from loadtest.report.schema import Objective, Throughput
from tuneline.core.verdict import Verdict

FLOORS = frozenset({"min_request_throughput_rps", "min_output_throughput_tps", "min_goodput_rps"})
"""Objectives on rates."""


def judge_objectives(slo: SLO, stats: Statistics, *, is_closed: bool = False) -> list[Objective]:
    """Judge every objective that is given, in the order of the configuration.

    Args:
        is_closed: The server decides when requests arrive, so the interval of a rate is judged. In
            an open loop the arrivals are given, and the rate that was measured is judged.
    """
    found = [
        latency_objective(
            metric, q, limit, stats.latencies[metric], stats.within[objective_name(metric, q)]
        )
        for metric, limits in slo.latency.items()
        for q, limit in limits.items()
    ]
    if slo.max_error_rate is not None:
        found.append(_error_rate(slo.max_error_rate, stats))
    if slo.max_session_error_rate is not None and stats.failed_sessions is not None:
        found.append(_session_error_rate(slo.max_session_error_rate, stats.failed_sessions))
    throughput = stats.throughput
    for name, limit, measured, interval, unit in (
        (
            "min_request_throughput_rps",
            slo.min_request_throughput_rps,
            throughput.succeeded_rps,
            throughput.succeeded_rps_ci95,
            "1/s",
        ),
        (
            "min_output_throughput_tps",
            slo.min_output_throughput_tps,
            throughput.output_tokens_per_s,
            throughput.output_tokens_per_s_ci95,
            "tokens/s",
        ),
    ):
        if limit is not None:
            bounds = interval if is_closed else None
            found.append(_least(name, limit, measured, unit, stats.num_offered, bounds))
    if slo.min_goodput_share is not None:
        found.append(_goodput_share(slo.min_goodput_share, stats.good))
    if slo.min_goodput_rps is not None:
        found.append(_goodput_rps(slo.min_goodput_rps, throughput, stats.good))
    has_rate = is_closed or stats.arrivals_scheduled.rate_rps is None  # a burst has one: its own
    if has_rate or throughput.window == "arrivals":
        return found
    return [_without_rate(one) if one.name in FLOORS else one for one in found]


def _without_rate(one: Objective) -> Objective:
    """Return a missed floor of a rate as undecided: the arrivals were too short to show a rate, and
    the whole run with its begin and its end has a lower one."""
    if one.verdict != Verdict.FAIL:
        return one
    reason = f"{one.reason}; over the whole run: the arrivals last too short to show a rate"
    return one.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reason": reason})


def latency_objective(
    metric: str, q: float, limit: float, found: Distribution, within: Share
) -> Objective:
    """Judge a percentile of a metric.

    A percentile lies at or below a limit if that share of the requests keeps to the limit. The
    share's interval decides. The percentile itself decides if all requests keep to the limit and
    the percentile is far below it.
    """
    name = objective_name(metric, q)
    value = found.at(q)
    if value is None:
        withheld = found.withheld.get(name_of(q), "")
        is_infinite = withheld == INFINITE
        return Objective(
            name=name,
            limit=limit,
            measured=None,
            unit="s",
            n=found.n,
            verdict=Verdict.FAIL if is_infinite else Verdict.INCONCLUSIVE,
            reason=f"{withheld} (N = {found.n})",
            # Without any value, more requests may have none either.
            num_needed=None if is_infinite or not found.n else num_needed(q),
        )
    reason = f"{value:.4g} s; at most {limit:g} s is allowed (N = {found.n})"
    noun = "conversations" if metric.startswith("session_") else "requests"
    needed = None
    verdict: Verdict
    if _is_least(within, q / 100):
        verdict = Verdict.PASS
    elif within.value == 1.0 and lies_below(value, limit, q, within.num_independent):
        verdict = Verdict.PASS
        reason += f"; all {noun} keep to it, and the percentile lies far below it"
    else:
        verdict = Verdict.FAIL if within.ci95[1] < q / 100 else Verdict.INCONCLUSIVE
        reason += (
            f"; {within.value:.1%} of the {noun} keep to it, {_interval(within, noun)}; "
            f"{q:g} % must"
        )
    if verdict == Verdict.INCONCLUSIVE:
        needed = _num_to_tell(within, q / 100)
        reason += _needed(needed, within, q / 100, noun)
    return Objective(
        name=name,
        limit=limit,
        measured=value,
        unit="s",
        n=found.n,
        verdict=verdict,
        reason=reason,
        num_needed=needed,
    )


def _error_rate(limit: float, stats: Statistics) -> Objective:
    """Judge the share of failed and unfinished requests."""
    count = stats.num_failed + stats.num_unfinished
    kinds = [f"{number} {name}" for name, number in sorted(stats.errors.items())]
    if stats.num_unfinished:
        kinds.append(f"{stats.num_unfinished} unfinished")
    said = f"{count} of {stats.num_offered} requests failed ({', '.join(kinds) or 'none'})"
    return _failures("max_error_rate", limit, stats.failed, count, stats.num_offered, said)


def _session_error_rate(limit: float, failed: Share) -> Objective:
    """Judge the share of sessions with a failed turn."""
    count = round(failed.value * failed.n)
    said = f"{count} of {failed.n} conversations failed"
    return _failures("max_session_error_rate", limit, failed, count, failed.n, said)


def _failures(name: str, limit: float, failed: Share, count: int, n: int, said: str) -> Objective:
    """Judge a share of failures. With a limit of 0.0 the failures that were seen decide; a larger
    limit is judged by the interval of the share.

    Args:
        said: The failures in words, the beginning of the reason.
    """
    reason = f"{said}; at most {limit:.2%} is allowed"
    verdict: Verdict = Verdict.FAIL if count else Verdict.PASS
    num_needed = None
    if limit > 0.0:
        low, high = failed.ci95
        reason += f", {_interval(failed)}"
        verdict = (
            Verdict.PASS if high <= limit else Verdict.FAIL if low > limit else Verdict.INCONCLUSIVE
        )
        if verdict == Verdict.INCONCLUSIVE:
            num_needed = _num_to_tell(failed, limit)
            reason += _needed(num_needed, failed, limit)
    return Objective(
        name=name,
        limit=limit,
        measured=failed.value,
        unit="1",
        n=n,
        verdict=verdict,
        reason=reason,
        num_needed=num_needed,
    )


def _goodput_share(limit: float, good: Share | None) -> Objective:
    """Judge the share of good requests. With a limit of 1.0 the requests that were seen decide."""
    name = "min_goodput_share"
    if good is None:
        return _least(name, limit, None, "1", 0)
    reason = f"{good.value:.2%} of {good.n} requests are good"
    verdict: Verdict = Verdict.PASS if good.value >= limit else Verdict.FAIL
    num_needed = None
    if limit < 1.0:
        reason += f", {_interval(good)}"
        verdict = Verdict.FAIL if good.ci95[1] < limit else Verdict.INCONCLUSIVE
        if _is_least(good, limit):
            verdict = Verdict.PASS
    reason += f"; at least {limit:.2%} are required"
    if verdict == Verdict.INCONCLUSIVE:
        num_needed = _num_to_tell(good, limit)
        reason += _needed(num_needed, good, limit)
    return Objective(
        name=name,
        limit=limit,
        measured=good.value,
        unit="1",
        n=good.n,
        verdict=verdict,
        reason=reason,
        num_needed=num_needed,
    )


def _goodput_rps(limit: float, throughput: Throughput, good: Share | None) -> Objective:
    """Judge the rate of good requests. The arrivals are given, so the rate is as sure as the share
    of good requests. Where every request would have to be good, the measured rate decides."""
    name, measured, offered = "min_goodput_rps", throughput.goodput_rps, throughput.offered_rps
    if good is None or measured is None or not offered:
        return _least(name, limit, None, "1/s", good.n if good else 0)
    share = good.value + (limit - measured) / offered
    if share >= 1.0:
        return _least(name, limit, measured, "1/s", good.n)
    low, high = (max(measured + offered * (bound - good.value), 0.0) for bound in good.ci95)
    verdict: Verdict = Verdict.FAIL if high < limit else Verdict.INCONCLUSIVE
    if low >= limit and good.n >= good.num_needed:
        verdict = Verdict.PASS
    reason = (
        f"{measured:.4g} 1/s, 95 % interval {low:.4g} to {high:.4g}; at least {limit:g} is "
        f"required (N = {good.n})"
    )
    num_needed = None
    if verdict == Verdict.INCONCLUSIVE:
        num_needed = _num_to_tell(good, max(share, 0.0))
        reason += _needed(num_needed, good, max(share, 0.0))
    return Objective(
        name=name,
        limit=limit,
        measured=measured,
        unit="1/s",
        n=good.n,
        verdict=verdict,
        reason=reason,
        num_needed=num_needed,
    )


def _least(
    name: str,
    limit: float,
    measured: float | None,
    unit: str,
    n: int,
    interval: tuple[float, float] | None = None,
) -> Objective:
    """Judge a floor by the interval of the value if there is one, else by the value."""
    verdict: Verdict = Verdict.INCONCLUSIVE
    reason = f"no window to measure it over (N = {n})"
    if measured is not None:
        verdict = Verdict.PASS if measured >= limit else Verdict.FAIL
        said = f"{measured:.4g} {unit}"
        if interval is not None:
            low, high = interval
            verdict = Verdict.PASS if low >= limit else Verdict.FAIL
            if low < limit <= high:
                verdict = Verdict.INCONCLUSIVE
            said += f", 95 % interval {low:.4g} to {high:.4g}"
        reason = f"{said}; at least {limit:g} is required (N = {n})"
    return Objective(
        name=name, limit=limit, measured=measured, unit=unit, n=n, verdict=verdict, reason=reason
    )


def _is_least(share: Share, limit: float) -> bool:
    """Return whether the true share is at least `limit` for sure."""
    return share.n >= share.num_needed and share.ci95[0] >= limit


def _interval(share: Share, noun: str = "requests") -> str:
    low, high = share.ci95
    text = f"95 % interval {low:.2%} to {high:.2%}"
    if share.num_independent < 0.99 * share.n:
        text += f" ({noun} depend on one another: they count as {share.num_independent:.0f})"
    return text


def _needed(num_needed: int, share: Share, limit: float, noun: str = "requests") -> str:
    """Return how many requests a verdict needs: at least, and if the share stays as it is."""
    said = f"; a verdict needs at least {num_needed} {noun}"
    if share.value == limit:
        return f"{said}, and more as long as the share is at the limit"
    likely = _requests_at(share.value, share, limit)
    if likely <= num_needed:
        return said
    # Two digits: the share itself is only known to within its interval.
    return f"{said}, and about {float(f'{likely:.1e}'):,.0f} if the share stays as it is"


def _num_to_tell(share: Share, limit: float) -> int:
    """Return how many requests a verdict needs at least, by the bound of the interval that could be
    told from the limit soonest: the share itself is noisy in a short run."""
    low, high = share.ci95
    nearest = low if share.value <= limit else high
    needed = 0.0 if nearest == limit else _requests_at(nearest, share, limit)
    return max(math.ceil(needed), share.num_needed, share.n + 1)


def _requests_at(value: float, share: Share, limit: float) -> float:
    """Return how many requests tell a share from the limit, if they depend on one another as the
    measured requests do."""
    return num_to_tell_share(value, limit) * share.n / max(share.num_independent, 1.0)
