"""Counts of values in bins of equal ratio: percentiles of any number of values in fixed memory.

A bin is 0.4 % wide, so a percentile is within 0.2 % of the exact percentile. Values below LOW share
the first bin, values above 10^5 the last. Pure.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Counts = NDArray[np.int64]

LOW = 1e-6
LOG_RATIO = math.log(1.004)
NUM_BINS = math.ceil(math.log(1e5 / LOW) / LOG_RATIO) + 2
EDGES: Values = np.concatenate(([0.0], LOW * np.exp(LOG_RATIO * np.arange(NUM_BINS))))
"""The lower edge of each bin, and the upper edge of the last bin."""


def bins_of(values: Values) -> Counts:
    """Return the bin of each finite value."""
    places = np.floor(np.log(np.maximum(values, LOW / 2) / LOW) / LOG_RATIO) + 1
    found: Counts = np.clip(places, 0, NUM_BINS - 1).astype(np.int64)
    return found


def count_values(values: Values) -> Counts:
    """Return the number of finite values in each bin."""
    return np.bincount(bins_of(values), minlength=NUM_BINS)


def percentile(counts: NDArray[Any], q: float, num_infinite: int = 0) -> float:
    """Return a percentile of counted values: NaN without values, infinite if the upper neighbour
    of the place is infinite.

    The place is that of numpy's linear percentile. Values of a bin are taken as evenly spread.

    Args:
        counts: The number of finite values in each bin.
        num_infinite: Further values above all bins.
    """
    ends = np.cumsum(counts)
    num_finite = int(ends[-1])
    total = num_finite + num_infinite
    if not total:
        return math.nan
    place = round((total - 1) * q / 100, 9)
    if math.ceil(place) >= num_finite:
        return math.inf
    found = int(np.searchsorted(ends, place, side="right"))
    before = float(ends[found] - counts[found])
    within = (place - before + 0.5) / float(counts[found])
    return float(EDGES[found] + min(within, 1.0) * (EDGES[found + 1] - EDGES[found]))


class Histogram:
    """Counts of one metric, with its mean and its largest value, which are exact."""

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(NUM_BINS, np.int64)
        self.num_infinite = 0
        self.total = 0.0
        self.largest: float | None = None

    @property
    def num_values(self) -> int:
        return int(self.counts.sum()) + self.num_infinite

    def add(self, values: Values) -> None:
        """Count values; infinite values count above all others, NaN does not count."""
        values = values[~np.isnan(values)]
        finite = values[np.isfinite(values)]
        self.num_infinite += len(values) - len(finite)
        if len(finite):
            self.counts += count_values(finite)
            self.total += float(finite.sum())
            self.largest = max(self.largest or 0.0, float(finite.max()))

    def spread(self, num_values: int) -> list[float]:
        """Return at most `num_values` values that have the percentiles of all values; the last is
        the largest value."""
        num_finite = int(self.counts.sum())
        if not num_finite or self.largest is None:
            return []
        ends = np.cumsum(self.counts)
        places = np.linspace(0, num_finite - 1, min(num_values, num_finite))
        found = np.searchsorted(ends, places, side="right")
        middles = (EDGES[found] + EDGES[found + 1]) / 2
        return [*np.minimum(middles, self.largest)[:-1].tolist(), self.largest]
