"""Arrivals whose gaps are independent draws of one distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from loadtest.arrivals.pattern import Draw

if TYPE_CHECKING:
    from loadtest.arrivals.pattern import Times
    from loadtest.config import Scenario


def renewal_times(
    scenario: Scenario,
    draw: Draw,
    gaps: Callable[[float, int], Times],
    *,
    gap_cv: float = 1.0,
) -> Times:
    """Return the sums of gaps, for `num_requests` or for `duration_s`.

    With `duration_s` the number of measured arrivals is random for a random process: it counts the
    arrivals inside the duration.

    Args:
        gaps: Takes the mean gap in seconds and a count; returns that many gaps.
        gap_cv: The largest coefficient of variation that the gaps have.
    """
    import numpy as np

    assert scenario.rate_rps is not None  # noqa: S101 (the configuration requires it)
    num_warmup = draw.num_warmup_requests
    mean_s = 1.0 / scenario.rate_rps
    if scenario.num_requests is not None:
        drawn = gaps(mean_s, num_warmup + scenario.num_requests)
        first_gap_removed: Times = np.cumsum(drawn) - drawn[0]
        return first_gap_removed
    assert scenario.duration_s is not None  # noqa: S101 (the configuration requires one of the two)
    # Enough gaps to outlast the duration: eight standard deviations above the mean count.
    expected = scenario.rate_rps * scenario.duration_s
    count = num_warmup + int(expected + 8 * gap_cv * np.sqrt(expected + 1) + 8)
    drawn = gaps(mean_s, count)
    times: Times = np.cumsum(drawn) - drawn[0]
    start_s = times[num_warmup] if num_warmup else 0.0
    inside: Times = times[times <= start_s + scenario.duration_s]
    return inside
