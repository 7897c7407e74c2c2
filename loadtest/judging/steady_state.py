"""From when on a run is steady, and whether its latency grows without end. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loadtest.judging.intervals import MIN_BLOCKS, NUM_RESAMPLES
from loadtest.report.schema import SteadyState

Values = NDArray[np.float64]

MSER_BATCH = 5
MAX_GROWTH = 0.5


def steady_state(times_s: Values, latencies_s: Values, block: int) -> SteadyState:
    """Find the steady part of a series of latencies, in the order of their intended times.

    A failed request (infinite) counts as the largest finite latency, so that a failing end shows.
    """
    count = len(latencies_s)
    finite = latencies_s[np.isfinite(latencies_s)]
    if count < 4 * MSER_BATCH or not len(finite):
        return SteadyState(
            num_discarded=0,
            from_s=float(times_s[0]) if count else None,
            found=bool(count),
            growth=None,
            growing=False,
        )
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
    """Return how many values at the front to discard so that the mean of the rest has the least
    error (MSER-5: White, Simulation 69, 1997)."""
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
    """Return the growth over the series as a share of its median, and its 95 % lower bound."""
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
