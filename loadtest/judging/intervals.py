"""How sure a figure is. Pure.

Requests that share a batch slow each other down, so their latencies are not independent, and an
interval that treats them so is too narrow. The moving-block bootstrap (Künsch, Annals of
Statistics 17, 1989) draws runs of neighbouring requests instead of single ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tuneline.core.statistics import Z_95

Values = NDArray[np.float64]

NUM_RESAMPLES = 400
CONFIDENCE = 0.95
MAX_DRAWN = 250_000
"""Blocks that are drawn at once: the memory of an interval does not grow with the series."""
MIN_BLOCKS = 5
"""Fewer blocks than this say nothing about the spread between them."""
TIMES_PER_BLOCK = 8
"""Autocorrelation times in a block. An interval therefore takes 40 of them: a shorter series may
show only a quiet stretch of the queue."""


def block_length(num_overlapping: float) -> int:
    """Return a block of two mean request times, in requests: twice the requests in flight, by
    Little's law. A short series gets no shorter block: its intervals would be too narrow.

    Args:
        num_overlapping: Requests in flight on average.
    """
    return max(1, math.ceil(2 * num_overlapping))


def mean_overlap(begin_s: Values, end_s: Values) -> float | None:
    """Return how many of some spans of time overlap on average (Little's law); None without an end.
    A span without an end does not count."""
    known = ~np.isnan(end_s) & ~np.isnan(begin_s)
    if not np.any(known):
        return None
    begin_s, end_s = begin_s[known], end_s[known]
    whole_s = float(np.max(end_s) - np.min(begin_s))
    return float(np.sum(end_s - begin_s)) / whole_s if whole_s > 0 else None


def percentile_above(values: Values, q: float) -> float:
    """Return the order statistic at or above numpy's percentile. It is never NaN, even if values
    are infinite."""
    return float(np.sort(values)[math.ceil((len(values) - 1) * q / 100)])


def ranks(values: Values) -> Values:
    """Return ranks from 1, the mean rank for equal values: infinite values keep a place."""
    _, places, sizes = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks: Values = (np.cumsum(sizes) - (sizes - 1) / 2)[places]
    return mean_ranks


def autocorrelation_time(values: Values) -> float:
    """Return how many values of a series count as one, by their ranks. Ranks keep a heavy tail or a
    failure from weighing more than its place. 1 if nine in ten values lie within a tenth of the
    median: so small a drift decides nothing."""
    low, median, high = (percentile_above(values, q) for q in (5, 50, 95))
    if low == high or (math.isfinite(high) and high - low <= 0.1 * median):
        return 1.0
    return integrated_time(ranks(values))


def integrated_time(values: Values) -> float:
    """Return how many values count as one, plus one standard error; 1 if the series cannot be
    told from an independent series.

    The integrated autocorrelation time 1 + 2 (rho_1 + rho_2 + ...) up to the first lag that is five
    times the sum so far, and its error (Madras and Sokal, Journal of Statistical Physics 50, 1988).
    """
    count = len(values)
    spectrum = np.fft.rfft(values - values.mean(), 2 * count)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[:count]
    if covariance[0] <= 0:
        return 1.0
    sums = 2 * np.cumsum(covariance / covariance[0]) - 1
    beyond = np.flatnonzero(np.arange(count) >= 5 * sums)
    window = int(beyond[0]) if len(beyond) else count - 1
    time = float(sums[window])
    if time <= 1 + 2 * math.sqrt(22 / count):  # two standard errors of 1, whose window is 5
        return 1.0
    return time * (1 + math.sqrt(2 * (2 * window + 1) / count))


def correlated_block(values: Values, block: int) -> int:
    """Return the block length that a series needs, and no less than `block`. A queue near
    saturation remembers for much longer than its requests run."""
    time = autocorrelation_time(values)
    return max(block, math.ceil(TIMES_PER_BLOCK * time)) if time > 1 else block


def num_to_tell_share(share: float, limit: float) -> int:
    """Return how many trials it takes until the interval around `share` no longer contains `limit`.
    The two must differ."""
    return math.ceil(Z_95**2 * limit * (1 - limit) / (limit - share) ** 2)


def lies_below(value: float, limit: float, q: float, num_independent: float) -> bool:
    """Return whether a percentile lies far below a limit, at 95 % confidence from few values.

    Assume that the percentile equals the limit and that times have an exponential tail, as waiting
    times in a queue have. Each value then lies at or below `value` with probability
    1 - (1 - q/100)^(value/limit). The function asks how probable it is that q % of the values do.

    Args:
        value: The percentile of the values.
        limit: In the unit of `value`.
        q: Which percentile.
        num_independent: As how many independent values the values count.
    """
    if value >= limit:
        return False
    count = max(1, math.floor(num_independent))
    above = (1 - q / 100) ** (value / limit)
    if above >= 1:
        return True
    log_below, log_above = math.log1p(-above), math.log(above)
    probability = sum(
        math.exp(
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            + k * log_below + (count - k) * log_above
        )
        for k in range(math.ceil(round(count * q / 100, 9)), count + 1)
    )  # fmt: skip
    return probability <= 1 - CONFIDENCE


def bootstrap(
    values: Values, percentiles: Sequence[float], block: int, *, seed: int = 0
) -> dict[float, tuple[float, float]]:
    """Return 95 % intervals of percentiles, of a series in the order of its requests.

    Infinite values make a bound infinite if they reach it. The result is empty if there are
    fewer than MIN_BLOCKS blocks.
    """
    count = len(values)
    if count < MIN_BLOCKS * block:
        return {}
    rng = np.random.default_rng(seed)
    num_blocks = -(-count // block)
    offsets = np.arange(block)
    drawn = np.empty((NUM_RESAMPLES, len(percentiles)))
    # Order statistics at the places of numpy's linear percentile; the upper one if it falls
    # between two, so that infinities do not turn into NaN.
    places = [min(math.ceil(round((count - 1) * q / 100, 9)), count - 1) for q in percentiles]
    for number in range(NUM_RESAMPLES):
        starts = rng.integers(0, count - block + 1, num_blocks)
        resampled = values[(starts[:, None] + offsets).ravel()[:count]]
        drawn[number] = np.partition(resampled, places)[places]
    return bounds_by_percentile(drawn, percentiles)


def bounds_by_percentile(
    drawn: Values, percentiles: Sequence[float]
) -> dict[float, tuple[float, float]]:
    """Return the 95 % interval of each percentile.

    Args:
        drawn: The percentiles of each resample: NUM_RESAMPLES rows, one column a percentile. The
            columns are sorted in place.
    """
    tail = (1 - CONFIDENCE) / 2
    drawn.sort(axis=0)
    low, high = math.floor(tail * NUM_RESAMPLES), math.ceil((1 - tail) * NUM_RESAMPLES) - 1
    return {
        q: (float(drawn[low, column]), float(drawn[high, column]))
        for column, q in enumerate(percentiles)
    }


def paired_difference(differences: Values, block: int) -> tuple[float, float, float]:
    """Return the mean of paired differences with its 95 % moving-block interval."""
    rng = np.random.default_rng(0)
    count = len(differences)
    block = max(1, min(block, count))
    num_blocks = -(-count // block)
    # Block means are enough for a mean: no resample is written out.
    sums = np.concatenate(([0.0], np.cumsum(differences)))
    means = np.empty(2000)
    step = max(MAX_DRAWN // num_blocks, 1)
    for begin in range(0, len(means), step):
        part = means[begin : begin + step]
        starts = rng.integers(0, count - block + 1, (len(part), num_blocks))
        part[:] = ((sums[starts + block] - sums[starts]) / block).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean(differences)), float(low), float(high)
