"""How a sequence of arrivals is spread in time. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loadtest.report.schema import Dispersion

ARRIVALS_PER_BIN = 10


def dispersion(times: NDArray[np.float64]) -> Dispersion:
    """Return rate, coefficient of variation and index of dispersion of arrival times in seconds.

    The index of dispersion is the variance over the mean of the counts in equal bins that expect
    ARRIVALS_PER_BIN arrivals each (Cox and Lewis, The Statistical Analysis of Series of Events,
    1966): 1 for a Poisson process.
    """
    times = np.sort(times)
    count = len(times)
    span_s = float(times[-1] - times[0]) if count > 1 else 0.0
    if span_s <= 0:
        return Dispersion(num_arrivals=count)
    gaps = np.diff(times)
    num_bins = (count - 1) // ARRIVALS_PER_BIN
    index = None
    if num_bins >= 5:
        edges = np.linspace(times[0], times[-1], num_bins + 1)
        # The first arrival opens the observation and is not counted in it.
        counts = np.histogram(times[1:], edges)[0]
        index = float(np.var(counts, ddof=1) / np.mean(counts))
    return Dispersion(
        num_arrivals=count,
        rate_rps=(count - 1) / span_s,
        gap_cv=float(np.std(gaps, ddof=1) / np.mean(gaps)) if count > 2 else None,
        index_of_dispersion=index,
    )
