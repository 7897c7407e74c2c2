"""Which rates a search tries. Pure: it yields rates and is sent outcomes."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Literal

Outcome = Literal["holds", "fails", "too low"]

MAX_RATES = 16
LOWEST_SHARE = 8
"""The search gives up below the first rate divided by this."""


def bracket(
    start_rps: float, max_rps: float, precision: float
) -> Generator[float, Outcome, tuple[float | None, float | None]]:
    """Yield rates to try; return the highest that holds and the lowest above it that fails.

    Doubles from the first rate until a rate fails, halves while none holds, then bisects on a
    logarithmic scale until the two are `precision` apart. A rate that is too low for a floor of
    throughput counts as a lower end, unless a lower rate already holds.
    """
    best: float | None = None
    failing: float | None = None
    lower: float | None = None
    rate = start_rps
    for _ in range(MAX_RATES):
        outcome = yield rate
        if outcome == "holds":
            best = lower = rate
        elif outcome == "too low" and best is None:
            lower = rate
        else:
            failing = rate
        if lower is None:
            if rate < start_rps / LOWEST_SHARE:
                return None, failing
            rate = rate / 2
        elif failing is None:
            if lower >= max_rps:
                return best, None
            rate = min(2 * lower, max_rps)
        elif failing / lower - 1 <= precision:
            return best, failing
        else:
            rate = math.sqrt(lower * failing)
    return best, failing
