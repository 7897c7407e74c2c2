"""Arrival times: one absolute schedule, made before the run and never changed by it. Pure.

A client that waits for a slow answer before it sends the next request measures the server only
while the server is well ("coordinated omission"). So every arrival is fixed here in advance, in
seconds from the start, and latency can be counted from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.config import Scenario


def arrival_times(
    scenario: Scenario,
    *,
    num_warmup_requests: int,
    seed: int,
    trace_s: Sequence[float] | None = None,
) -> tuple[NDArray[np.float64], int]:
    """Arrival times of an open loop, warm-up first, and how many of them are warm-up.

    Times are ascending seconds from the start. With `duration_s` the number of measured arrivals
    is itself random for a random process: all that fall into the duration.

    Args:
        scenario: An open loop.
        num_warmup_requests: How many arrivals come before the measured ones.
        seed: Of the random processes.
        trace_s: The times of a trace, for `arrival: trace`; it has no warm-up of its own, so its
            first requests are that.
    """
    if scenario.loop == "closed":
        raise ValueError("a closed loop has no schedule")
    if scenario.arrival == "burst":
        assert scenario.num_requests is not None  # noqa: S101 (the config requires it)
        return np.zeros(num_warmup_requests + scenario.num_requests), num_warmup_requests
    if scenario.arrival == "trace":
        return _trace(scenario, trace_s or (), num_warmup_requests)
    rng = np.random.default_rng(seed)
    if scenario.arrival == "ramp":
        return _ramp(scenario, rng, num_warmup_requests), num_warmup_requests
    if scenario.num_requests is not None:
        gaps = _gaps(scenario, rng, num_warmup_requests + scenario.num_requests)
        return np.cumsum(gaps) - gaps[0], num_warmup_requests
    assert scenario.duration_s is not None and scenario.rate_rps is not None  # noqa: S101
    # Enough gaps to outlast the duration: eight standard deviations above the mean count.
    expected = scenario.rate_rps * scenario.duration_s
    spread = 1.0 if scenario.burstiness is None else scenario.burstiness**-0.5
    count = num_warmup_requests + int(expected + 8 * spread * np.sqrt(expected + 1) + 8)
    gaps = _gaps(scenario, rng, count)
    times = np.cumsum(gaps) - gaps[0]
    start_s = times[num_warmup_requests] if num_warmup_requests else 0.0
    return times[times <= start_s + scenario.duration_s], num_warmup_requests


def _trace(
    scenario: Scenario, trace_s: Sequence[float], num_warmup_requests: int
) -> tuple[NDArray[np.float64], int]:
    times = np.sort(np.asarray(trace_s, np.float64)) / (scenario.trace_speed or 1.0)
    times -= times[0] if len(times) else 0.0
    if scenario.num_requests is not None:
        return times[: num_warmup_requests + scenario.num_requests], num_warmup_requests
    assert scenario.duration_s is not None  # noqa: S101 (the config requires one of the two)
    start_s = times[min(num_warmup_requests, len(times) - 1)]
    return times[times <= start_s + scenario.duration_s], num_warmup_requests


def _ramp(
    scenario: Scenario, rng: np.random.Generator, num_warmup_requests: int
) -> NDArray[np.float64]:
    """A Poisson process whose rate changes linearly: arrivals of a unit-rate process, put through
    the inverse of the expected count r0 t + (r1 - r0) t^2 / 2T. Warm-up comes at the first rate."""
    begin, end = scenario.rate_rps, scenario.rate_end_rps
    assert begin is not None and end is not None  # noqa: S101 (the config requires them)
    duration_s = scenario.duration_s
    if duration_s is None:
        assert scenario.num_requests is not None  # noqa: S101 (the config requires one)
        duration_s = scenario.num_requests / ((begin + end) / 2)
    expected = (begin + end) / 2 * duration_s
    counts = np.cumsum(rng.exponential(1.0, int(expected + 8 * np.sqrt(expected + 1) + 8)))
    counts = counts[: scenario.num_requests] if scenario.num_requests else counts[counts < expected]
    slope = (end - begin) / duration_s
    if slope == 0:
        times = counts / begin
    else:
        # A count beyond the expected one comes later than T; a falling rate stops falling there.
        inside = np.maximum(begin**2 + 2 * slope * counts, 0.0)
        times = (np.sqrt(inside) - begin) / slope
        late = counts > expected
        times[late] = duration_s + (counts[late] - expected) / end
    warmup = np.cumsum(rng.exponential(1 / begin, num_warmup_requests))
    start_s = warmup[-1] if num_warmup_requests else 0.0
    return np.concatenate((warmup, start_s + times))


def _gaps(scenario: Scenario, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    assert scenario.rate_rps is not None  # noqa: S101 (the config requires it)
    mean_s = 1.0 / scenario.rate_rps
    if scenario.arrival == "constant":
        return np.full(count, mean_s)
    if scenario.arrival == "gamma":
        assert scenario.burstiness is not None  # noqa: S101 (the config requires it)
        shape = scenario.burstiness
        return rng.gamma(shape, mean_s / shape, count)
    return rng.exponential(mean_s, count)


@dataclass(frozen=True)
class Dispersion:
    """How a sequence of arrivals is spread in time."""

    num_arrivals: int
    rate_rps: float | None
    """Gaps per second between the first and the last arrival."""
    gap_cv: float | None
    """Coefficient of variation of the gaps: 1 for Poisson, 0 for constant."""
    index_of_dispersion: float | None
    """Variance over mean of the counts in equal bins that expect ten arrivals each: 1 for
    Poisson (Cox and Lewis, The Statistical Analysis of Series of Events, 1966)."""


ARRIVALS_PER_BIN = 10


def dispersion(times: NDArray[np.float64]) -> Dispersion:
    """Rate, coefficient of variation and index of dispersion of arrival times in seconds."""
    times = np.sort(times)
    count = len(times)
    span_s = float(times[-1] - times[0]) if count > 1 else 0.0
    if span_s <= 0:
        return Dispersion(count, None, None, None)
    gaps = np.diff(times)
    num_bins = (count - 1) // ARRIVALS_PER_BIN
    index = None
    if num_bins >= 5:
        edges = np.linspace(times[0], times[-1], num_bins + 1)
        # The first arrival opens the observation; it is no count of it.
        counts = np.histogram(times[1:], edges)[0]
        index = float(np.var(counts, ddof=1) / np.mean(counts))
    return Dispersion(
        num_arrivals=count,
        rate_rps=(count - 1) / span_s,
        gap_cv=float(np.std(gaps, ddof=1) / np.mean(gaps)) if count > 2 else None,
        index_of_dispersion=index,
    )
