"""How sure a figure is, and from when on a run is steady. Pure.

Requests that share a batch slow each other down, so their latencies are not independent, and an
interval that treats them so is too narrow. The moving-block bootstrap (Künsch, Annals of
Statistics 17, 1989) draws runs of neighbouring requests instead of single ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneline.core.statistics import Z_95

Values = NDArray[np.float64]

NUM_RESAMPLES = 400
CONFIDENCE = 0.95
MIN_BLOCKS = 5
"""Fewer blocks than this say nothing of the spread between them."""
TIMES_PER_BLOCK = 8
"""Autocorrelation times in a block. An interval so takes 40 of them: a series that is shorter may
hold nothing but a quiet stretch of the queue."""
MSER_BATCH = 5


def block_length(num_overlapping: float) -> int:
    """Two mean requests long, in requests: twice as many as run at once, by Little's law. Never
    shorter where the series is: shorter blocks give intervals that are too narrow.

    Args:
        num_overlapping: Requests in flight on average.
    """
    return max(1, math.ceil(2 * num_overlapping))


def percentile_above(values: Values, q: float) -> float:
    """The order statistic at or above numpy's percentile; never NaN where values are infinite."""
    return float(np.sort(values)[math.ceil((len(values) - 1) * q / 100)])


def autocorrelation_time(values: Values) -> float:
    """How many values of a series count as one, by their ranks, so that a heavy tail or a failure
    weighs no more than its place; 1 where nine in ten values lie within a tenth of the median: a
    drift so small decides nothing."""
    _, places, sizes = np.unique(values, return_inverse=True, return_counts=True)
    low, median, high = (percentile_above(values, q) for q in (5, 50, 95))
    if low == high or (math.isfinite(high) and high - low <= 0.1 * median):
        return 1.0
    return integrated_time((np.cumsum(sizes) - (sizes - 1) / 2)[places])


def integrated_time(values: Values) -> float:
    """How many values count as one, and one standard error more; 1 where the series cannot be told
    from an independent one.

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
    """The block that a series itself asks for, and no shorter than `block`. A queue near
    saturation remembers for much longer than its requests run."""
    time = autocorrelation_time(values)
    return max(block, math.ceil(TIMES_PER_BLOCK * time)) if time > 1 else block


def num_to_tell_share(share: float, limit: float) -> int:
    """Trials after which the `wilson_interval` around `share` no longer holds `limit`;
    the two must differ."""
    return math.ceil(Z_95**2 * limit * (1 - limit) / (limit - share) ** 2)


def lies_below(value: float, limit: float, q: int, num_independent: float) -> bool:
    """Whether a percentile lies so far below a limit that few values are enough to say so, at 95 %.

    If the percentile lay at the limit, and times had an exponential tail as a queue's waiting times
    have, each value would lie at or below `value` with probability 1 - (1 - q/100)^(value/limit).
    So this asks how probable it is that q % of them do.

    Args:
        value: The percentile of the values.
        limit: In the unit of `value`.
        q: Which percentile.
        num_independent: As how many the values count.
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
        for k in range(math.ceil(count * q / 100), count + 1)
    )  # fmt: skip
    return probability <= 1 - CONFIDENCE


def bootstrap(
    values: Values, percentiles: tuple[int, ...], block: int, *, seed: int = 0
) -> dict[int, tuple[float, float]]:
    """95 % intervals of percentiles, of a series in the order of its requests.

    Infinite values are allowed and make a bound infinite where they reach it. An empty result
    means that there are fewer than MIN_BLOCKS blocks.
    """
    count = len(values)
    if count < MIN_BLOCKS * block:
        return {}
    rng = np.random.default_rng(seed)
    num_blocks = -(-count // block)
    offsets = np.arange(block)
    drawn = np.empty((NUM_RESAMPLES, len(percentiles)))
    # Order statistics at the places of numpy's linear percentile; the upper one where it falls
    # between two, so that infinities do not turn into NaN.
    places = [min(math.ceil((count - 1) * q / 100), count - 1) for q in percentiles]
    for number in range(NUM_RESAMPLES):
        starts = rng.integers(0, count - block + 1, num_blocks)
        resampled = values[(starts[:, None] + offsets).ravel()[:count]]
        drawn[number] = np.partition(resampled, places)[places]
    tail = (1 - CONFIDENCE) / 2
    drawn.sort(axis=0)
    low, high = math.floor(tail * NUM_RESAMPLES), math.ceil((1 - tail) * NUM_RESAMPLES) - 1
    return {
        q: (float(drawn[low, column]), float(drawn[high, column]))
        for column, q in enumerate(percentiles)
    }


def paired_difference(
    differences: Values, block: int, *, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of paired differences with its 95 % moving-block interval."""
    rng = np.random.default_rng(seed)
    count = len(differences)
    block = max(1, min(block, count))
    num_blocks = -(-count // block)
    starts = rng.integers(0, count - block + 1, (2000, num_blocks))
    # Block means are enough for a mean: no resample is written out.
    sums = np.concatenate(([0.0], np.cumsum(differences)))
    means = ((sums[starts + block] - sums[starts]) / block).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean(differences)), float(low), float(high)


@dataclass(frozen=True)
class SteadyState:
    """From where on a run is steady, and whether it grows without end."""

    num_discarded: int
    """Requests before the steady part; MSER-5 (White, Simulation 69, 1997)."""
    from_s: float | None
    """Intended time of the first steady request."""
    found: bool
    """False where MSER wants to discard more than half: there is no steady part."""
    growth: float | None
    """What the latency grows by over the steady part, as a share of its median (least squares)."""
    growing: bool
    """The growth's 95 % lower bound is above MAX_GROWTH: the queue does not settle."""


MAX_GROWTH = 0.5


def steady_state(times_s: Values, latencies_s: Values, block: int) -> SteadyState:
    """Find the steady part of a series of latencies, in the order of their intended times.

    Failed requests (infinite) count as the largest finite latency, so that a failing end shows.
    """
    count = len(latencies_s)
    finite = latencies_s[np.isfinite(latencies_s)]
    if count < 4 * MSER_BATCH or not len(finite):
        return SteadyState(0, float(times_s[0]) if count else None, bool(count), None, False)
    values = np.where(np.isfinite(latencies_s), latencies_s, np.max(finite))
    cut = mser(values)
    found = cut <= count // 2
    start = cut if found else 0
    # A queue that grows without end has more in flight than any block can span.
    fitting = max(1, min(block, (count - start) // MIN_BLOCKS))
    growth, lower = _growth(times_s[start:], values[start:], fitting)
    return SteadyState(
        num_discarded=start,
        from_s=float(times_s[start]),
        found=found,
        growth=growth,
        growing=lower is not None and lower > MAX_GROWTH,
    )


def mser(values: Values) -> int:
    """How many values at the front to discard so that the mean of the rest is surest."""
    num_batches = len(values) // MSER_BATCH
    batches = values[: num_batches * MSER_BATCH].reshape(num_batches, MSER_BATCH).mean(axis=1)
    # Marginal standard error of the mean of what is left, for every cut.
    left = num_batches - np.arange(num_batches)
    sums = np.cumsum(batches[::-1])[::-1]
    squares = np.cumsum(batches[::-1] ** 2)[::-1]
    errors = (squares - sums**2 / left) / left**2
    # The last few cuts leave too little to have an error.
    usable = max(num_batches - 5, 1)
    return int(np.argmin(errors[:usable])) * MSER_BATCH


def _growth(times_s: Values, values: Values, block: int) -> tuple[float | None, float | None]:
    span_s = float(times_s[-1] - times_s[0])
    median = float(np.median(values))
    count = len(values)
    if span_s <= 0 or median <= 0 or count < 4 * block or count < 20:
        return None, None
    scaled = (times_s - times_s.mean()) / span_s
    slope = float(scaled @ (values - values.mean()) / (scaled @ scaled))
    residuals = values - values.mean() - slope * scaled
    # Blocks of residuals around the fitted line.
    rng = np.random.default_rng(0)
    starts = rng.integers(0, count - block + 1, (NUM_RESAMPLES, -(-count // block)))
    places = (starts[:, :, None] + np.arange(block)).reshape(NUM_RESAMPLES, -1)[:, :count]
    slopes = slope + residuals[places] @ scaled / (scaled @ scaled)
    return slope / median, float(np.quantile(slopes, 0.025)) / median
