"""A run in blocks of time: counts and latency histograms of each block, in fixed memory.

Only these blocks give the figures of a long run and their intervals. For a mean over the run
such as a rate, the block means show how sure it is (batch means: Schmeiser, Operations Research 30,
1982), and neighbouring blocks that still depend on each other are drawn together (Künsch, Annals of
Statistics 17, 1989).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.client.records import CANCELLED, SUCCEEDED, Records
from loadtest.config import SLO
from loadtest.histogram import NUM_BINS, bins_of, percentile
from loadtest.judging.drift import drift_of
from loadtest.judging.goodput import good
from loadtest.judging.intervals import MIN_BLOCKS, correlated_block, paired_difference
from loadtest.judging.latency import raw_values
from loadtest.judging.samples import Samples
from loadtest.judging.window import Window
from loadtest.report.soak_schema import OverTime

Values = NDArray[np.float64]

MAX_BLOCKS = 240
MIN_RATES = 20
"""Fewer blocks give no interval of a rate."""
REQUESTS_PER_BLOCK = 2
"""A block lasts for at least so many mean request times: a request then touches few blocks."""
RATES = ("arrived", "ended", "good_ended", "tokens", "prompt_tokens")
METRICS = ("ttft_s", "ttft_from_sent_s", "tpot_s", "worst_gap_s", "e2e_s", "e2e_from_sent_s")
SHOWN = ("ttft_s", "tpot_s", "e2e_s")
"""The metrics whose drift is judged."""


@dataclass(frozen=True)
class Grid:
    """Blocks of equal length over the window of a run."""

    start_s: float
    end_s: float
    num_blocks: int
    rates_from_s: float
    """From when on rates count; the blocks before show how the run fills."""

    @property
    def block_s(self) -> float:
        return (self.end_s - self.start_s) / self.num_blocks

    @property
    def begins_s(self) -> Values:
        """Return the begin of each block."""
        begins: Values = np.linspace(self.start_s, self.end_s, self.num_blocks, endpoint=False)
        return begins

    def places(self, times_s: Values) -> NDArray[np.int64]:
        """Return the block of each time; the first and the last block take what lies outside."""
        places = np.floor((times_s - self.start_s) / self.block_s)
        found: NDArray[np.int64] = np.clip(places, 0, self.num_blocks - 1).astype(np.int64)
        return found

    def inside(self, times_s: Values) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (times_s > self.start_s) & (times_s <= self.end_s)
        return found

    def counts(self, times_s: Values) -> NDArray[np.bool_]:
        """Return which times lie where rates count."""
        found: NDArray[np.bool_] = (times_s > self.rates_from_s) & (times_s <= self.end_s)
        return found

    @property
    def first_counted(self) -> int:
        """Return the first block that lies wholly where rates count."""
        return math.ceil(round((self.rates_from_s - self.start_s) / self.block_s, 9))


def make_grid(window: Window, mean_request_s: float) -> Grid | None:
    """Return the blocks of a window; None for a window without a length."""
    span_s = window.end_s - window.start_s
    if not span_s > 0:
        return None
    shortest_s = max(REQUESTS_PER_BLOCK * mean_request_s, span_s / MAX_BLOCKS)
    num_blocks = max(int(span_s / shortest_s), 1)
    return Grid(window.start_s, window.end_s, num_blocks, window.rates_from_s)


class Blocks:
    """Counts per block, filled from records in any order.

    Args:
        grid: The blocks.
        slo: For its limits: how many requests keep to each is counted exactly.
    """

    def __init__(self, grid: Grid, slo: SLO) -> None:
        self.grid, self.slo = grid, slo
        size = grid.num_blocks

        def zeros() -> Values:
            return np.zeros(size)

        self.offered, self.cancelled, self.failed, self.good = zeros(), zeros(), zeros(), zeros()
        self.ended, self.good_ended, self.tokens = zeros(), zeros(), zeros()
        self.totals_of_rates = dict.fromkeys(RATES, 0.0)
        """Sums over the time in which rates count, by rate."""
        self.within = {
            (metric, q): zeros() for metric, limits in slo.latency.items() for q in limits
        }
        self.counts = {name: np.zeros((size, NUM_BINS), np.int32) for name in METRICS}
        self.infinite = {name: zeros() for name in METRICS}
        self.totals = dict.fromkeys(METRICS, 0.0)
        """Sum of the finite values."""
        self.largest: dict[str, float | None] = dict.fromkeys(METRICS)

    def add(self, records: Records) -> None:
        """Count records, warm-up included: a warm-up request that ends in the window loads it."""
        grid = self.grid
        ok = records.state == SUCCEEDED
        is_good = good(records, self.slo) if self.slo.has_goodput else ok & False
        ends = ok & grid.inside(records.last_token_s)
        self._sum(self.ended, records.last_token_s[ends])
        self._sum(self.good_ended, records.last_token_s[ends & is_good])
        known = np.repeat(ok, records.num_events) & ~np.isnan(records.event_tokens)
        shown = known & grid.inside(records.event_s)
        self._sum(self.tokens, records.event_s[shown], records.event_tokens[shown])
        rows = ~records.warmup & ~np.isnan(records.intended_s)
        left = rows & (records.state == CANCELLED)
        self._sum(self.cancelled, records.intended_s[left])
        rows &= records.state != CANCELLED
        first = ok & grid.counts(records.first_token_s)
        ends = ok & grid.counts(records.last_token_s)
        for name, count in {
            "arrived": np.sum(grid.counts(records.intended_s[rows])),
            "ended": np.sum(ends),
            "good_ended": np.sum(ends & is_good),
            "tokens": np.sum(records.event_tokens[known & grid.counts(records.event_s)]),
            "prompt_tokens": np.nansum(records.prompt_tokens[first]),
        }.items():
            self.totals_of_rates[name] += float(count)
        self._sum(self.offered, records.intended_s[rows])
        self._sum(self.failed, records.intended_s[rows & ~ok])
        self._sum(self.good, records.intended_s[rows & is_good])
        places = grid.places(records.intended_s[rows])
        values = raw_values(records)
        for name in METRICS:
            self._count(name, values[name][rows], places)

    def _sum(self, into: Values, times_s: Values, weights: Values | None = None) -> None:
        into += np.bincount(self.grid.places(times_s), weights, self.grid.num_blocks)

    def _count(self, name: str, values: Values, places: NDArray[np.int64]) -> None:
        finite = np.isfinite(values)
        shown = values[finite]
        np.add.at(self.counts[name], (places[finite], bins_of(shown)), 1)
        if len(shown):
            self.totals[name] += float(shown.sum())
            self.largest[name] = max(self.largest[name] or 0.0, float(shown.max()))
        size = self.grid.num_blocks
        self.infinite[name] += np.bincount(places[np.isinf(values)], minlength=size)
        for q, limit in self.slo.latency.get(name, {}).items():
            # NaN is not counted, and keeps to no limit.
            self.within[name, q] += np.bincount(places[values <= limit], minlength=size)

    def num_values(self, name: str) -> Values:
        """Return how many values of a metric each block has."""
        found: Values = self.counts[name].sum(axis=1) + self.infinite[name]
        return found

    def medians(self, name: str) -> Values:
        """Return the median of a metric in each block; NaN without values, or infinite."""
        pairs = zip(self.counts[name], self.infinite[name], strict=True)
        return np.array([percentile(counts, 50, int(more)) for counts, more in pairs])


def rate_interval(per_block: Values, grid: Grid) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean rate from its sums per block; None if there are too few
    independent blocks."""
    rates = per_block[grid.first_counted :] / grid.block_s
    if len(rates) < MIN_RATES:
        return None
    block = correlated_block(rates, 1)
    if len(rates) < MIN_BLOCKS * block:
        return None
    _, low, high = paired_difference(rates, block)
    return max(low, 0.0), high


def over_time(blocks: Blocks, samples: Samples | None) -> OverTime:
    """Return the report's part on the run over time."""
    slo = blocks.slo
    grid = blocks.grid
    medians = {name: blocks.medians(name) for name in SHOWN}
    samples = samples or Samples()
    at_s = np.array(samples.time_s, np.float64)
    memory, cache = (
        np.array([np.nan if one is None else one for one in series], np.float64)
        for series in (samples.memory_mib, samples.kv_cache_usage)
    )
    wanted = slo.max_latency_drift_per_hour is not None
    drifts = [drift_of(name, "s", grid.begins_s, medians[name], is_judged=wanted) for name in SHOWN]
    wanted = slo.max_server_memory_growth_mib_per_hour is not None
    drifts.append(drift_of("server_memory_mib", "MiB", at_s, memory, is_judged=wanted))
    wanted = slo.max_kv_cache_growth_per_hour is not None
    drifts.append(drift_of("kv_cache_usage", "1", at_s, cache, is_judged=wanted))
    return OverTime(
        block_s=grid.block_s,
        time_s=grid.begins_s.tolist(),
        num_offered=blocks.offered.astype(int).tolist(),
        num_failed=blocks.failed.astype(int).tolist(),
        succeeded_rps=(blocks.ended / grid.block_s).tolist(),
        output_tokens_per_s=(blocks.tokens / grid.block_s).tolist(),
        good_rps=(blocks.good_ended / grid.block_s).tolist(),
        ttft_p50_s=_finite(medians["ttft_s"]),
        tpot_p50_s=_finite(medians["tpot_s"]),
        e2e_p50_s=_finite(medians["e2e_s"]),
        server_time_s=samples.time_s,
        server_memory_mib=samples.memory_mib,
        kv_cache_usage=samples.kv_cache_usage,
        drifts=drifts,
    )


def _finite(values: Values) -> list[Any]:
    return [float(value) if np.isfinite(value) else None for value in values]
