"""Which loads a search tries. Pure: it yields loads and is sent outcomes."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Literal

Outcome = Literal["holds", "fails", "too low"]

MAX_BISECTIONS = 16
LOWEST_SHARE = 8
"""The search gives up below the first load divided by this."""


def bracket(
    start: float, most: float, precision: float, *, is_whole: bool = False, goes_down: bool = True
) -> Generator[float, Outcome, tuple[float | None, float | None]]:
    """Yield loads to try; return the highest that holds and the lowest above it that fails.

    Doubles from the first load until a load fails, halves while none holds, then bisects on a
    logarithmic scale until the two are `precision` apart. A load that is too low for a floor of
    throughput counts as a lower end, unless a lower load already holds.

    Args:
        is_whole: Loads are whole numbers from 1, such as streams.
        goes_down: Whether loads below the first are tried.
    """
    best: float | None = None
    failing: float | None = None
    lower: float | None = None
    load = start
    num_bisections = 0
    while True:
        outcome = yield load
        if outcome == "holds":
            best = lower = load
        elif outcome == "too low" and best is None:
            lower = load
        else:
            failing = load
        if lower is None:
            if not goes_down or load < start / LOWEST_SHARE or (is_whole and load <= 1):
                return None, failing
            load = max(load // 2, 1.0) if is_whole else load / 2
        elif failing is None:
            if lower >= most:
                return best, None
            load = min(2 * lower, most)
        elif (
            failing / lower - 1 <= precision
            or (is_whole and failing - lower <= 1)
            or num_bisections == MAX_BISECTIONS
        ):
            return best, failing
        else:
            num_bisections += 1
            middle = math.sqrt(lower * failing)
            load = float(round(middle)) if is_whole else middle
