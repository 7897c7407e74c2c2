"""The two clocks of a client: the kernel stamps bytes with CLOCK_REALTIME, we count in the other.

The wall clock may be set while a load test runs, so the two are compared at each tick.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.client.connection import TIMESPEC, monotonic_ns

INTERVAL_NS = 1_000_000_000
"""A comparison is kept at least this often."""
STEP_NS = 100_000
"""A larger change from one comparison to the next says that the wall clock was set."""


def realtime_offset_ns() -> int:
    """Return CLOCK_REALTIME minus CLOCK_MONOTONIC: the kernel stamps by one, we count in the other.

    The tightest of a few readings, since the process may be interrupted between the two clocks.
    """
    best: tuple[int, int] | None = None
    for _ in range(5):
        before_ns = monotonic_ns()
        real_ns = time.time_ns()
        after_ns = monotonic_ns()
        reading = (after_ns - before_ns, real_ns - (before_ns + after_ns) // 2)
        best = reading if best is None or reading < best else best
    assert best is not None  # noqa: S101 (five readings were taken)
    return best[1]


def compare_clocks(offsets: list[tuple[int, int]], before_ns: int) -> None:
    """Compare the clocks again, and append the result if it says something new.

    Args:
        offsets: Pairs of a monotonic time and what CLOCK_REALTIME was ahead by then, ascending.
        before_ns: The monotonic time of the comparison before this one, whose result was that of
            the last pair. If the wall clock was set, it was set after that time.
    """
    now_ns = monotonic_ns()
    at_ns, ahead_ns = offsets[-1]
    now_ahead_ns = realtime_offset_ns()
    if abs(now_ahead_ns - ahead_ns) > STEP_NS:
        if before_ns > at_ns:
            offsets.append((before_ns, ahead_ns))
        offsets.append((now_ns, now_ahead_ns))
    elif now_ns - at_ns > INTERVAL_NS:
        offsets.append((now_ns, now_ahead_ns))


def forget_clocks(offsets: list[tuple[int, int]], before_ns: int) -> None:
    """Drop the comparisons that no time from `before_ns` on needs: the last comparison up to then
    stays, since times after it are interpolated from it."""
    while len(offsets) > 1 and offsets[1][0] < before_ns:
        del offsets[0]


def receive_times(
    seen_ns: np.ndarray[Any, np.dtype[np.int64]],
    stamps: Sequence[bytes | None],
    clock_offsets: Sequence[tuple[int, int]],
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the monotonic nanoseconds at which each read's bytes had arrived.

    Args:
        seen_ns: When the user's clock saw the reads, of any number of connections.
        stamps: The kernel's own of each.
        clock_offsets: Pairs of a monotonic time and what CLOCK_REALTIME was ahead by then, in
            ascending order; between two of them it is interpolated.
    """
    at_ns, ahead_ns = zip(*clock_offsets, strict=True)
    base = ahead_ns[0]
    ahead = np.interp(seen_ns - at_ns[0], np.array(at_ns) - at_ns[0], np.array(ahead_ns) - base)
    unstamped = bytes(TIMESPEC.size)
    joined = b"".join([stamp or unstamped for stamp in stamps])
    timespecs = np.frombuffer(joined, np.int64).reshape(-1, 2)
    arrived = timespecs[:, 0] * 1_000_000_000 + timespecs[:, 1] - base - np.rint(ahead).astype("i8")
    arrived[timespecs[:, 0] == 0] = np.iinfo(np.int64).max
    times: np.ndarray[Any, np.dtype[np.int64]] = np.minimum(arrived, seen_ns)
    return times
