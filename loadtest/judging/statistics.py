"""Records to figures. Pure.

Definitions and sources stand in docs/metrics.md. Three rules: a failed or unfinished request is
infinitely slow; every percentile carries the number of values behind it, and is withheld where that
number cannot support it; `offered = succeeded + failed + unfinished` holds or the figures are void.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals.schedule import Dispersion, dispersion
from loadtest.client.plan import FAILED, SUCCEEDED, UNFINISHED, Records
from loadtest.config import SLO
from loadtest.judging.intervals import (
    MIN_BLOCKS,
    TIMES_PER_BLOCK,
    SteadyState,
    autocorrelation_time,
    block_length,
    bootstrap,
    correlated_block,
    integrated_time,
    steady_state,
)
from tuneline.core.statistics import wilson_interval

Values = NDArray[np.float64]

PERCENTILES = (50, 90, 99)
MIN_VALUES = {50: 5, 90: 29, 99: 300}
"""Fewest values for a percentile q: n with q^n <= 0.05, so that the largest value lies above the
true percentile with 95 % confidence (n >= ln 0.05 / ln q: 5, 29, 299)."""


@dataclass(frozen=True)
class Figure:
    """A distribution. Infinite values are those of failed requests."""

    unit: str
    n: int
    """Values, those of failed requests included."""
    mean_of_succeeded: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    max_of_succeeded: float | None
    withheld: dict[str, str] = field(default_factory=dict)
    """Why a percentile is null."""
    ci95: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """95 % moving-block bootstrap interval of each percentile; a null bound is infinite."""

    def percentile(self, q: int) -> float | None:
        value: float | None = getattr(self, f"p{q}")
        return value


@dataclass(frozen=True)
class Share:
    """How many of the requests are of a kind."""

    value: float
    n: int
    num_independent: float
    """As how many independent requests they count: those that overlap succeed and fail together."""
    ci95: tuple[float, float]
    num_needed: int
    """Requests that it takes to see their dependence; with fewer the interval may be too narrow."""


@dataclass(frozen=True)
class Throughput:
    """Rates over the window in which requests arrived, or over the whole run where that window is
    shorter than a request."""

    window: str
    """`arrivals` or `whole run`."""
    window_s: float
    offered_rps: float | None
    succeeded_rps: float | None
    output_tokens_per_s: float | None
    prompt_tokens_per_s: float | None
    goodput_rps: float | None
    """Requests that meet every goodput limit, per second; null without such limits."""


@dataclass(frozen=True)
class Tokens:
    """Counts by the server's usage, and how they compare with the events seen."""

    num_output_tokens: int
    num_prompt_tokens: int
    num_cached_prompt_tokens: int | None
    num_events: int
    num_without_usage: int
    """Succeeded requests whose stream carried no usage."""
    num_more_events_than_tokens: int
    """Succeeded requests with more text events than tokens by usage: one of the two is wrong."""
    num_wrong_length: int
    """With `ignore_eos`: succeeded requests that have not exactly `max_tokens` tokens."""
    num_first_tokens_estimated: int
    """Requests with several tokens per event and no count in each: their TPOT takes the mean."""
    num_merged_events: int
    """Events that came in one read with the one before, so that their gap reads as zero."""


@dataclass(frozen=True)
class Statistics:
    """Everything measured of one scenario; warm-up is left out."""

    num_offered: int
    num_succeeded: int
    num_failed: int
    num_unfinished: int
    num_warmup: int
    failed: Share
    """Failed and unfinished requests."""
    good: Share | None
    """Requests that meet every goodput limit; None without such limits, or requests."""
    within: dict[str, Share]
    """By latency objective: the requests that keep to its limit."""
    errors: dict[str, int]
    retry_after_s: list[float]
    latencies: dict[str, Figure]
    throughput: Throughput
    tokens: Tokens
    send_lag: Figure
    arrivals_scheduled: Dispersion
    arrivals_delivered: Dispersion
    mean_in_flight: float | None
    """Requests in flight on average, by Little's law."""
    steady_state: SteadyState


def percentile(values: Values, q: float) -> float:
    """Linear between order statistics (numpy's default, type 7 of Hyndman and Fan, 1996), and
    infinite as soon as the upper neighbour is."""
    ordered = np.sort(values)
    place = (len(ordered) - 1) * q / 100
    low = int(np.floor(place))
    weight = place - low
    if weight == 0:
        return float(ordered[low])
    upper = float(ordered[low + 1])
    return upper if np.isinf(upper) else float(ordered[low] + (upper - ordered[low]) * weight)


def figure(
    values: Values, unit: str = "s", *, withhold: bool = True, block: int | None = None
) -> Figure:
    """A distribution; percentiles that its size cannot support are withheld, unless they only
    describe these very values (the client's own lags). With `block`, the least length of a
    bootstrap block, percentiles get their intervals."""
    finite = values[np.isfinite(values)]
    found: dict[int, float | None] = {}
    withheld = {}
    for q in PERCENTILES:
        needed = MIN_VALUES[q] if withhold else 1
        if len(values) < needed:
            found[q] = None
            withheld[f"p{q}"] = f"{len(values)} values; at least {needed} are needed"
            continue
        value = percentile(values, q)
        found[q] = value if np.isfinite(value) else None
        if found[q] is None:
            withheld[f"p{q}"] = "infinite: too many requests failed"
    ci95 = {}
    if block is not None and len(values):
        block = correlated_block(values, block)
        shown = tuple(q for q in PERCENTILES if found[q] is not None)
        for q, bounds in bootstrap(values, shown, block).items() if shown else ():
            low, high = (bound if np.isfinite(bound) else None for bound in bounds)
            ci95[f"p{q}"] = (low, high)
        for q in shown:
            if f"p{q}" not in ci95:
                withheld[f"p{q}_ci95"] = (
                    f"no interval from {len(values)} values that depend on their neighbours as "
                    f"these do; at least {MIN_BLOCKS * block} are needed"
                )
    return Figure(
        unit=unit,
        n=len(values),
        mean_of_succeeded=float(np.mean(finite)) if len(finite) else None,
        p50=found[50],
        p90=found[90],
        p99=found[99],
        max_of_succeeded=float(np.max(finite)) if len(finite) else None,
        withheld=withheld,
        ci95=ci95,
    )


def latency_values(records: Records) -> dict[str, Values]:
    """Seconds per request (per gap for `inter_chunk_gap_s`), infinite for failed requests.

    `ttft_s` and `e2e_s` count from the intended time, `*_from_sent_s` from the sending.
    """
    ok = records.state == SUCCEEDED

    def since(start: Values, end: Values) -> Values:
        # Whatever has no end is not quick.
        return np.where(ok & ~np.isnan(end), end - start, np.inf)

    values = {
        "ttft_s": since(records.intended_s, records.first_token_s),
        "ttft_from_sent_s": since(records.sent_s, records.first_token_s),
        "tpot_s": tpot_s(records),
        "inter_chunk_gap_s": gaps_s(records),
        "worst_gap_s": _worst_gaps_s(records),
        "e2e_s": since(records.intended_s, records.last_token_s),
        "e2e_from_sent_s": since(records.sent_s, records.last_token_s),
    }
    # An answer of one token has no TPOT and no gap.
    return {name: value[~np.isnan(value)] for name, value in values.items()}


def tpot_s(records: Records) -> Values:
    """(t_last - t_first) / (N - n_first), one per request; NaN where N <= n_first."""
    first = records.first_tokens
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_per_event = records.tokens / records.num_events
        rest = records.tokens - np.where(np.isnan(first), mean_per_event, first)
        values = (records.last_token_s - records.first_token_s) / np.where(rest > 0, rest, np.nan)
    result: Values = np.where(records.state == SUCCEEDED, values, np.inf)
    return result


def gaps_s(records: Records) -> Values:
    """Pooled times between the token events of each succeeded request."""
    gaps, owners = _gaps(records)
    result: Values = gaps[(records.state == SUCCEEDED)[owners]]
    return result


def _gaps(records: Records) -> tuple[Values, NDArray[np.int64]]:
    owners: NDArray[np.int64] = np.repeat(np.arange(len(records)), records.num_events)
    within = owners[1:] == owners[:-1]
    return np.diff(records.event_s)[within], owners[1:][within]


def _worst_gaps_s(records: Records) -> Values:
    gaps, owners = _gaps(records)
    worst = np.full(len(records), -np.inf)
    np.maximum.at(worst, owners, gaps)
    worst = np.where(np.isinf(worst), np.nan, worst)
    result: Values = np.where(records.state == SUCCEEDED, worst, np.inf)
    return result


def good(records: Records, slo: SLO) -> NDArray[np.bool_]:
    """Which requests meet every goodput limit (DistServe, Zhong et al., OSDI 2024)."""
    fine: NDArray[np.bool_] = records.state == SUCCEEDED
    if slo.goodput_ttft_s is not None:
        fine &= records.first_token_s - records.intended_s <= slo.goodput_ttft_s
    if slo.goodput_e2e_s is not None:
        fine &= records.last_token_s - records.intended_s <= slo.goodput_e2e_s
    if slo.goodput_tpot_s is not None:
        values = tpot_s(records)
        fine &= np.isnan(values) | (values <= slo.goodput_tpot_s)
    return fine


def statistics(
    records: Records,
    slo: SLO,
    *,
    exact_tokens: Values | None,
    duration_s: float | None,
    ended_early: bool = False,
) -> Statistics:
    """Every figure of one scenario.

    Args:
        records: All requests of the scenario, warm-up included.
        slo: For its goodput limits.
        exact_tokens: Tokens that each row's answer must have; None where they end by themselves.
        duration_s: The scenario's measured duration, where it has one.
        ended_early: The run was given up: what was not sent by then was not to be sent.
    """
    measured = records.select(~records.warmup)
    states = {code: int(np.sum(measured.state == code)) for code in (0, 1, 2)}
    names, counts = np.unique(measured.error[measured.state == FAILED], return_counts=True)
    latencies = latency_values(measured)
    decisive = [latencies[name] for name in ("ttft_s", "tpot_s", "e2e_s")]
    in_flight = mean_in_flight(measured)
    block = block_length(in_flight or 1.0)
    sent = ~np.isnan(measured.sent_s)
    # A request that failed before it was sent found no connection: the server's failure, and no
    # arrival that the client kept back. One that the client never began is.
    kept_back = (measured.state == UNFINISHED) & ~np.isnan(measured.intended_s) & ~sent
    scheduled = sent if ended_early else sent | kept_back
    return Statistics(
        num_offered=len(measured),
        num_succeeded=states[SUCCEEDED],
        num_failed=states[FAILED],
        num_unfinished=states[UNFINISHED],
        num_warmup=int(np.sum(records.warmup)),
        failed=share_of(measured.state != SUCCEEDED),
        good=share_of(good(measured, slo), *decisive, block=block)
        if slo.has_goodput and len(measured)
        else None,
        within=_within(latencies, slo, block),
        errors={str(name): int(count) for name, count in zip(names, counts, strict=True)},
        retry_after_s=sorted({float(v) for v in measured.retry_after_s if not np.isnan(v)}),
        latencies={
            # Gaps are too many to resample, and no objective is set on them.
            name: figure(values, block=None if name == "inter_chunk_gap_s" else block)
            for name, values in latencies.items()
        },
        throughput=_throughput(records, measured, slo, duration_s),
        tokens=_tokens(measured, None if exact_tokens is None else exact_tokens[~records.warmup]),
        send_lag=figure((measured.sent_s - measured.intended_s)[sent], withhold=False),
        arrivals_scheduled=dispersion(measured.intended_s[scheduled]),
        arrivals_delivered=dispersion(measured.sent_s[sent]),
        mean_in_flight=in_flight,
        steady_state=_steady_state(measured, block),
    )


def share_of(hits: NDArray[np.bool_], *decisive: Values, block: int = 1) -> Share:
    """The share of hits among requests in their order, with its interval.

    Args:
        hits: One per request.
        decisive: Latencies that decide the hits: these depend on one another as those do, also
            where all of them are the same.
        block: The least length of a block of neighbours; a block counts as TIMES_PER_BLOCK.
    """
    n = len(hits)
    if not n:
        return Share(0.0, 0, 0.0, wilson_interval(0.0, 0), MIN_BLOCKS)
    times = [autocorrelation_time(values) for values in decisive if len(values)]
    time = max(integrated_time(hits.astype(np.float64)), *times, 1.0)
    if time > 1:
        block = max(block, math.ceil(TIMES_PER_BLOCK * time))
    num_independent = min(TIMES_PER_BLOCK * n / block, n)
    share = float(np.mean(hits))
    interval = wilson_interval(share, num_independent)
    return Share(share, n, num_independent, interval, MIN_BLOCKS * block)


def _within(latencies: dict[str, Values], slo: SLO, block: int) -> dict[str, Share]:
    found = {}
    for metric in ("ttft", "tpot", "e2e"):
        for q in PERCENTILES:
            name = f"{metric}_p{q}_s"
            values, limit = latencies[f"{metric}_s"], getattr(slo, name)
            if limit is not None:
                found[name] = share_of(values <= limit, values, block=block)
    return found


def mean_in_flight(records: Records) -> float | None:
    """Sum of the requests' times in the system over the span of their arrivals and ends."""
    ended = ~np.isnan(records.end_s)
    if not np.any(ended):
        return None
    begin, end = records.intended_s[ended], records.end_s[ended]
    span_s = float(np.max(end) - np.min(begin))
    return float(np.sum(end - begin)) / span_s if span_s > 0 else None


def _steady_state(measured: Records, block: int) -> SteadyState:
    began = np.flatnonzero(~np.isnan(measured.intended_s))
    order = began[np.argsort(measured.intended_s[began], kind="stable")]
    ok = measured.state == SUCCEEDED
    e2e = np.where(ok, measured.last_token_s - measured.intended_s, np.inf)
    return steady_state(measured.intended_s[order], e2e[order], block)


def window_s(records: Records, duration_s: float | None) -> tuple[str, float, float]:
    """The window that rates are taken over: its name, start and end."""
    measured = records.select(~records.warmup)
    began = measured.intended_s[~np.isnan(measured.intended_s)]
    if not len(began):
        return "whole run", 0.0, 0.0
    start_s = float(np.min(began))
    end_s = float(np.max(began)) if duration_s is None else start_s + duration_s
    lengths = (measured.end_s - measured.intended_s)[~np.isnan(measured.end_s)]
    if not len(lengths) or end_s - start_s >= np.median(lengths):
        return "arrivals", start_s, end_s
    return "whole run", start_s, float(np.nanmax(measured.end_s))


def _throughput(
    records: Records, measured: Records, slo: SLO, duration_s: float | None
) -> Throughput:
    name, start_s, end_s = window_s(records, duration_s)
    span_s = end_s - start_s

    def per_second(amount: float) -> float | None:
        return float(amount) / span_s if span_s > 0 else None

    def inside(times_s: Values) -> NDArray[np.bool_]:
        return (times_s > start_s) & (times_s <= end_s)

    # Warm-up requests that end inside the window load the server in it, so they count here.
    ok = records.state == SUCCEEDED
    of_ok = np.repeat(ok, records.num_events)
    prompts = np.nansum(records.prompt_tokens[ok & inside(records.first_token_s)])
    arrived = len(measured) if name == "whole run" else np.sum(inside(measured.intended_s))
    num_good_inside = float(np.sum(good(records, slo) & inside(records.last_token_s)))
    return Throughput(
        window=name,
        window_s=span_s,
        offered_rps=per_second(float(arrived)),
        succeeded_rps=per_second(np.sum(ok & inside(records.last_token_s))),
        output_tokens_per_s=per_second(
            np.nansum(records.event_tokens[of_ok & inside(records.event_s)])
        ),
        prompt_tokens_per_s=per_second(prompts),
        goodput_rps=per_second(num_good_inside) if slo.has_goodput else None,
    )


def _tokens(measured: Records, exact_tokens: Values | None) -> Tokens:
    succeeded = measured.state == SUCCEEDED
    ok = measured.select(succeeded)
    known = ~np.isnan(ok.tokens)
    cached = ok.cached_tokens[~np.isnan(ok.cached_tokens)]
    wrong = np.zeros(len(ok), np.bool_)
    if exact_tokens is not None:
        wrong = known & (ok.tokens != exact_tokens[succeeded])
    return Tokens(
        num_output_tokens=int(np.nansum(ok.tokens)),
        num_prompt_tokens=int(np.nansum(ok.prompt_tokens)),
        num_cached_prompt_tokens=int(np.sum(cached)) if len(cached) else None,
        num_events=int(np.sum(ok.num_events)),
        num_without_usage=int(np.sum(~known)),
        num_more_events_than_tokens=int(np.sum(known & (ok.num_events > ok.tokens))),
        num_wrong_length=int(np.sum(wrong)),
        num_first_tokens_estimated=int(np.sum(known & np.isnan(ok.first_tokens))),
        num_merged_events=int(np.sum(ok.merged_events)),
    )


def client_figures(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """The clients' own accounts, joined."""
    checks = [worker["self_check"] for worker in workers]

    def joined(name: str) -> Values:
        return np.array([value for check in checks for value in check[name]], np.float64)

    def total(name: str) -> int:
        return sum(int(check[name]) for check in checks)

    return {
        "num_workers": len(workers),
        "loop_lag_s": figure(joined("loop_lags_s"), withhold=False),
        "read_lag_s": figure(joined("read_lags_s"), withhold=False),
        "cpu_s": sum(float(check["cpu_s"]) for check in checks),
        "parse_cpu_s": sum(float(worker["parse_cpu_s"]) for worker in workers),
        "num_reads": total("num_reads"),
        "num_reads_kernel_clock": total("num_reads_kernel_clock"),
        "num_connects_in_window": total("num_connects_in_window"),
        "num_spares_opened": total("num_spares_opened"),
        "num_resent": total("num_resent"),
        "steal_share": _largest(checks, "steal_share"),
        "throttled_share": _largest(
            [
                {"share": None if c["throttled_s"] is None else c["throttled_s"] / c["wall_s"]}
                for c in checks
                if c["wall_s"] > 0
            ],
            "share",
        ),
        "nice": min(int(check["nice"]) for check in checks),
    }


def _largest(documents: list[dict[str, Any]], name: str) -> float | None:
    values = [float(one[name]) for one in documents if one[name] is not None]
    return max(values, default=None)
