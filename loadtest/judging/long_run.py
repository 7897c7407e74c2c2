"""The figures of a run whose records lie on disk, from its blocks (`long_reading.py`). Pure.

Counts, sums, means and shares are exact. Percentiles come from histograms and are within 0.2 %.
An interval draws runs of neighbouring blocks in place of requests (Künsch, Annals of Statistics 17,
1989); requests of a block are not drawn, so their dependence on each other cannot make it too
narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals.dispersion import dispersion
from loadtest.client.records import CANCELLED, FAILED, SUCCEEDED, UNFINISHED
from loadtest.config import SLO
from loadtest.histogram import Histogram, percentile
from loadtest.judging.blocks import METRICS, Blocks, rate_interval
from loadtest.judging.cancellations import Left
from loadtest.judging.intervals import (
    CONFIDENCE,
    MIN_BLOCKS,
    NUM_RESAMPLES,
    TIMES_PER_BLOCK,
    correlated_block,
    integrated_time,
)
from loadtest.judging.latency import INFINITE
from loadtest.judging.long_reading import LongRun
from loadtest.judging.statistics import Statistics, objective_name
from loadtest.judging.steady_state import steady_state
from loadtest.percentiles import name_of, num_needed, reported
from loadtest.report.part import Distribution, Interval, Share
from loadtest.report.schema import Dispersion, SteadyState, Throughput, Tokens
from tuneline.core.statistics import wilson_interval

Values = NDArray[np.float64]


def long_statistics(
    run: LongRun, blocks: Blocks | None, *, num_unsent: int, ended_early: bool = False
) -> Statistics:
    """Return every figure of a long run.

    Args:
        num_unsent: Requests that were offered and never begun.
        ended_early: The run was given up: requests that were not begun were not to be sent.
    """
    states = [int(one) for one in run.states]
    states[UNFINISHED] += num_unsent
    count = sum(states) - states[CANCELLED]
    span_s = run.last_end_s - run.first_end_s
    times = {} if blocks is None else {name: _block_times(blocks, name) for name in METRICS}
    latencies = {name: _latency(blocks, run.slo, name, times) for name in METRICS}
    latencies["inter_chunk_gap_s"] = counted(run.gaps)
    lost = states[FAILED] + states[UNFINISHED]
    return Statistics(
        num_offered=sum(states),
        num_succeeded=states[SUCCEEDED],
        num_failed=states[FAILED],
        num_unfinished=states[UNFINISHED],
        num_cancelled=states[CANCELLED],
        num_resent=run.num_resent,
        num_warmup=run.num_warmup,
        failed=_share(lost, count, _failed_effect(blocks), 1.0),
        good=_good(blocks, run.slo, num_unsent, times),
        within={
            objective_name(metric, q): _within(blocks, metric, q, num_unsent, times)
            for metric, limits in run.slo.latency.items()
            if metric in METRICS
            for q in limits
        },
        errors=dict(sorted(run.errors.items())),
        retry_after_s=sorted(run.retry_after_s),
        latencies=latencies,
        throughput=_throughput(run, blocks),
        tokens=Tokens(
            **{**run.counts, **({} if run.has_cached else {"num_cached_prompt_tokens": None})}  # type: ignore[arg-type]
        ),
        send_lag=counted(run.send_lag, withhold=False),
        connect_wait=counted(run.connect_wait, withhold=False),
        arrivals_scheduled=_dispersion(_scheduled(run, ended_early), states),
        arrivals_delivered=_dispersion(run.ready_s, states),
        mean_in_flight=run.in_system_s / span_s if span_s > 0 else None,
        steady_state=_steady_state(blocks),
    )


def left_of_long_run(run: LongRun) -> Left:
    """Return what a long run says of clients that left."""
    return Left(
        run.num_left,
        run.num_left - run.left_ttft.num_values,
        counted(run.left_ttft, withhold=False),
        run.num_tokens + run.num_left_events,
    )


def counted(
    found: Histogram,
    *,
    withhold: bool = True,
    also: Iterable[float] = (),
    ci95: dict[str, Interval] | None = None,
    reason: str | None = None,
) -> Distribution:
    """Return the distribution of counted values.

    Args:
        withhold: See `distribution`.
        also: Percentiles next to the reported ones.
        ci95: The intervals of percentiles.
        reason: Why a shown percentile has no interval; None if none is wanted.
    """
    total = found.num_values
    percentiles: dict[str, float | None] = {}
    withheld = {}
    for q in reported(also):
        name = name_of(q)
        percentiles[name] = None
        needed = num_needed(q) if withhold else 1
        if total < needed:
            withheld[name] = f"{total} values; at least {needed} are needed"
            continue
        value = percentile(found.counts, q, found.num_infinite)
        if math.isfinite(value):
            percentiles[name] = min(value, found.largest or value)
        else:
            withheld[name] = INFINITE
    shown = [name for name, value in percentiles.items() if value is not None]
    ci95 = {name: bounds for name, bounds in (ci95 or {}).items() if name in shown}
    num_finite = total - found.num_infinite
    return Distribution(
        unit="s",
        n=total,
        mean_of_succeeded=found.total / num_finite if num_finite else None,
        max_of_succeeded=found.largest,
        percentiles=percentiles,
        withheld=withheld,
        ci95=ci95,
        without_interval={name: reason for name in shown if reason and name not in ci95},
    )


def _total(blocks: Blocks, name: str) -> Histogram:
    """Return all values of a metric."""
    found = Histogram()
    found.counts = blocks.counts[name].sum(axis=0, dtype=np.int64)
    found.num_infinite = int(blocks.infinite[name].sum())
    found.total, found.largest = blocks.totals[name], blocks.largest[name]
    return found


def _block_times(blocks: Blocks, name: str) -> tuple[float, int]:
    """Return how many requests count as one for a metric, and how many neighbouring blocks depend
    on each other.

    By batch means: the variance of a block's mean rank times its number of values, over the
    variance of ranks. Ranks keep a failure from weighing more than its place.
    """
    counts = np.column_stack([blocks.counts[name], blocks.infinite[name]])
    sizes = counts.sum(axis=1)
    filled = sizes > 0
    total = counts.sum(axis=0)
    ends = np.cumsum(total)
    ranks = ends - (total - 1) / 2
    num = float(ends[-1])
    if filled.sum() < 2 or num < 2:
        return 1.0, 1
    variance = float(np.sum(total * (ranks - (num + 1) / 2) ** 2) / num)
    if variance == 0:
        return 1.0, 1
    means = counts[filled] @ ranks / sizes[filled]
    per_block = float(np.var(means, ddof=1)) * float(np.mean(sizes[filled]))
    return max(per_block / variance * integrated_time(means), 1.0), correlated_block(means, 1)


def _latency(
    blocks: Blocks | None, slo: SLO, name: str, times: dict[str, tuple[float, int]]
) -> Distribution:
    also = slo.latency.get(name, ())
    if blocks is None:  # no request was measured
        return counted(Histogram(), also=also)
    _, length = times[name]
    num_blocks = blocks.grid.num_blocks
    ci95: dict[str, Interval] = {}
    if num_blocks >= MIN_BLOCKS * length:
        ci95 = _intervals(blocks, name, list(reported(also)), length)
    reason = (
        f"no interval from {num_blocks} blocks of {blocks.grid.block_s:.3g} s that depend on their "
        f"neighbours as these do; at least {MIN_BLOCKS * length} are needed"
    )
    return counted(_total(blocks, name), also=also, ci95=ci95, reason=reason)


def _intervals(
    blocks: Blocks, name: str, percentiles: Sequence[float], length: int
) -> dict[str, Interval]:
    """Return 95 % intervals of percentiles by drawing runs of `length` neighbouring blocks."""
    counts, infinite = blocks.counts[name], blocks.infinite[name]
    size = len(counts)
    rng = np.random.default_rng(0)
    starts = rng.integers(0, size - length + 1, (NUM_RESAMPLES, -(-size // length)))
    places = (starts[:, :, None] + np.arange(length)).reshape(NUM_RESAMPLES, -1)[:, :size]
    times = np.zeros((NUM_RESAMPLES, size))
    np.add.at(times, (np.arange(NUM_RESAMPLES)[:, None], places), 1.0)
    used = np.flatnonzero(counts.any(axis=0))
    resampled = np.zeros((NUM_RESAMPLES, counts.shape[1]))
    resampled[:, used] = times @ counts[:, used].astype(np.float64)
    more = times @ infinite
    drawn = np.array(
        [
            [percentile(row, q, int(extra)) for q in percentiles]
            for row, extra in zip(resampled, more, strict=True)
        ]
    )
    tail = (1 - CONFIDENCE) / 2
    drawn.sort(axis=0)
    low, high = math.floor(tail * NUM_RESAMPLES), math.ceil((1 - tail) * NUM_RESAMPLES) - 1
    return {
        name_of(q): (_finite(drawn[low, column]), _finite(drawn[high, column]))
        for column, q in enumerate(percentiles)
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _share(num_hits: float, count: float, effect: float, time: float) -> Share:
    """Return a share whose hits count as `1 / effect` independent hits each."""
    needed = math.ceil(MIN_BLOCKS * TIMES_PER_BLOCK * time) if time > 1 else MIN_BLOCKS
    if not count:
        return Share(value=0.0, n=0, num_independent=0.0, ci95=(0.0, 1.0), num_needed=needed)
    share = num_hits / count
    independent = count / max(effect, time, 1.0)
    return Share(
        value=share, n=int(count), num_independent=independent,
        ci95=wilson_interval(share, independent), num_needed=needed,
    )  # fmt: skip


def _effect(hits: Values, sizes: Values) -> float:
    """Return how many clustered hits count as one: the variance of their share by blocks, a ratio
    of sums, over the variance of independent hits."""
    total, count = float(sizes.sum()), len(sizes)
    share = float(hits.sum()) / total if total else 0.0
    if count < 2 or share in (0.0, 1.0):
        return 1.0
    deviations = hits - share * sizes
    between = count / (count - 1) * float(np.sum(deviations**2)) / total**2
    return between / (share * (1 - share) / total) * integrated_time(deviations)


def _failed_effect(blocks: Blocks | None) -> float:
    return 1.0 if blocks is None else _effect(blocks.failed, blocks.offered)


def _within(
    blocks: Blocks | None,
    metric: str,
    q: float,
    num_unsent: int,
    times: dict[str, tuple[float, int]],
) -> Share:
    if blocks is None:
        return _share(0.0, num_unsent, 1.0, 1.0)
    hits, sizes = blocks.within[metric, q], blocks.num_values(metric)
    count = float(sizes.sum()) + num_unsent
    return _share(float(hits.sum()), count, _effect(hits, sizes), times[metric][0])


def _good(
    blocks: Blocks | None, slo: SLO, num_unsent: int, times: dict[str, tuple[float, int]]
) -> Share | None:
    if blocks is None or not slo.has_goodput:
        return None
    longest = max(times[name][0] for name in ("ttft_s", "tpot_s", "e2e_s"))
    count = float(blocks.offered.sum()) + num_unsent
    return _share(float(blocks.good.sum()), count, _effect(blocks.good, blocks.offered), longest)


def _throughput(run: LongRun, blocks: Blocks | None) -> Throughput:
    if blocks is None or run.window is None:
        return Throughput(
            window="whole run", window_s=0.0, offered_rps=None, succeeded_rps=None,
            output_tokens_per_s=None, prompt_tokens_per_s=None, goodput_rps=None,
        )  # fmt: skip
    grid, has_goodput = blocks.grid, run.slo.has_goodput
    span_s = grid.end_s - grid.rates_from_s
    is_whole = run.window.name == "whole run"
    rates = {name: total / span_s for name, total in blocks.totals_of_rates.items()}

    def interval(per_block: Values) -> tuple[float, float] | None:
        return None if is_whole else rate_interval(per_block, grid)

    return Throughput(
        window=run.window.name,
        window_s=span_s,
        offered_rps=float(blocks.offered.sum()) / span_s if is_whole else rates["arrived"],
        succeeded_rps=rates["ended"],
        succeeded_rps_ci95=interval(blocks.ended),
        output_tokens_per_s=rates["tokens"],
        output_tokens_per_s_ci95=interval(blocks.tokens),
        prompt_tokens_per_s=rates["prompt_tokens"],
        goodput_rps=rates["good_ended"] if has_goodput else None,
        goodput_rps_ci95=interval(blocks.good_ended) if has_goodput else None,
    )


def _scheduled(run: LongRun, ended_early: bool) -> list[Values]:
    """Return the arrivals that were to be sent, in parts; empty for a closed loop."""
    if run.arrivals_s is None or run.begun is None or ended_early:
        return run.scheduled_s
    never = ~run.begun
    never[: run.num_warmup] = False
    return [*run.scheduled_s, run.arrivals_s[never]]


def _dispersion(parts: Sequence[Values], states: Sequence[int]) -> Dispersion:
    """Return the dispersion of an open loop's arrivals; a closed loop has none to keep to."""
    if not parts:
        return Dispersion(num_arrivals=sum(states))
    return dispersion(np.concatenate(parts))


def _steady_state(blocks: Blocks | None) -> SteadyState:
    """Find the steady part by the medians of the blocks."""
    if blocks is None:
        return SteadyState(num_discarded=0, from_s=None, found=False, growth=None, growing=False)
    filled = blocks.num_values("e2e_s") > 0
    medians = blocks.medians("e2e_s")[filled]
    found = steady_state(blocks.grid.begins_s[filled], medians, 1)
    sizes = blocks.num_values("e2e_s")[filled]
    return found.model_copy(update={"num_discarded": int(sizes[: found.num_discarded].sum())})
