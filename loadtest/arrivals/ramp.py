"""`arrival: ramp`: a Poisson process whose rate changes linearly to `rate_end_rps`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.arrivals.pattern import Draw, Pattern

if TYPE_CHECKING:
    from loadtest.arrivals.pattern import Times
    from loadtest.config import Scenario


def times(scenario: Scenario, draw: Draw) -> Times:
    """Return the arrivals of a unit-rate process, put through the inverse of the expected count
    r0 t + (r1 - r0) t^2 / 2T. Warm-up comes at the first rate."""
    import numpy as np

    begin, end, rng = scenario.rate_rps, scenario.rate_end_rps, draw.rng
    assert begin is not None and end is not None  # noqa: S101 (the configuration requires them)
    duration_s = scenario.duration_s
    if duration_s is None:
        assert scenario.num_requests is not None  # noqa: S101 (the configuration requires one)
        duration_s = scenario.num_requests / ((begin + end) / 2)
    expected = (begin + end) / 2 * duration_s
    counts = np.cumsum(rng.exponential(1.0, int(expected + 8 * np.sqrt(expected + 1) + 8)))
    counts = counts[: scenario.num_requests] if scenario.num_requests else counts[counts < expected]
    slope = (end - begin) / duration_s
    if slope == 0:
        measured = counts / begin
    else:
        # A count beyond the expected count comes after T. A falling rate stops falling there.
        inside = np.maximum(begin**2 + 2 * slope * counts, 0.0)
        measured = (np.sqrt(inside) - begin) / slope
        late = counts > expected
        measured[late] = duration_s + (counts[late] - expected) / end
    warmup = np.cumsum(rng.exponential(1 / begin, draw.num_warmup_requests))
    start_s = warmup[-1] if draw.num_warmup_requests else 0.0
    whole: Times = np.concatenate((warmup, start_s + measured))
    return whole


PATTERN = Pattern(times, rates=("rate_rps", "rate_end_rps"), needs=("rate_end_rps",))
