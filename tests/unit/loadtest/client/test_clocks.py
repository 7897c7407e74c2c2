"""Times by the kernel's clock are right although the wall clock is set during a run."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.client import clocks
from loadtest.client.connection import TIMESPEC

S = 1_000_000_000
MS = 1_000_000
AHEAD = 1_700_000_000 * S


def offsets_of(monkeypatch: pytest.MonkeyPatch, ahead_ns: dict[int, int]) -> list[tuple[int, int]]:
    """Compare the clocks at each of these times, in ms, as a client with these ticks does."""
    first, *ticks = ahead_ns
    offsets = [(first * MS, AHEAD + ahead_ns[first])]
    before = first
    for tick in ticks:
        monkeypatch.setattr(clocks, "monotonic_ns", lambda tick=tick: tick * MS)
        monkeypatch.setattr(clocks, "realtime_offset_ns", lambda tick=tick: AHEAD + ahead_ns[tick])
        clocks.compare_clocks(offsets, before * MS)
        before = tick
    return offsets


def arrival_ns(offsets: list[tuple[int, int]], at_ms: int, ahead_ns: int) -> int:
    """The time that is found for bytes that arrived then, by a wall clock so far ahead."""
    stamp = TIMESPEC.pack(*divmod(at_ms * MS + AHEAD + ahead_ns, S))
    seen = np.array([(at_ms + 50) * MS])
    return int(clocks.receive_times(seen, [stamp], offsets)[0])


def test_a_clock_that_is_set_moves_the_times_of_one_tick_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = -4_400_000
    offsets = offsets_of(monkeypatch, {at: (step if at > 500 else 0) for at in range(0, 1400, 20)})
    for at_ms in range(0, 440, 10):
        assert arrival_ns(offsets, at_ms, 0) == at_ms * MS
    for at_ms in range(530, 1300, 10):
        assert arrival_ns(offsets, at_ms, step) == at_ms * MS


def test_a_clock_that_drifts_is_followed_with_a_comparison_per_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offsets = offsets_of(monkeypatch, {at: at * 50 for at in range(0, 4000, 20)})  # 50 ppm
    assert [at // MS for at, _ in offsets] == [0, 1020, 2040, 3060]
    assert arrival_ns(offsets, 1500, 1500 * 50) == pytest.approx(1500 * MS, abs=3_000)


def test_a_clock_that_is_set_at_each_tick_keeps_the_history_of_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ahead = {at: at * 10_000 for at in range(0, 4000, 20)}  # 200 us per tick
    offsets = offsets_of(monkeypatch, ahead)
    assert len(offsets) == 200
    before = {at_ms: arrival_ns(offsets, at_ms, at_ms * 10_000) for at_ms in range(3000, 3900, 10)}
    clocks.forget_clocks(offsets, 3010 * MS)
    assert [at // MS for at, _ in offsets] == list(range(3000, 4000, 20))
    for at_ms, found in before.items():
        assert arrival_ns(offsets, at_ms, at_ms * 10_000) == found
    clocks.forget_clocks(offsets, 9000 * MS)
    assert [at // MS for at, _ in offsets] == [3980]
