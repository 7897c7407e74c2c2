"""The percentiles that reports show, their names, and the values that each needs. Pure.

To report another percentile, add it to `PERCENTILES`. An objective on a percentile that is not in
the list adds it to its own scenario.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

PERCENTILES: tuple[float, ...] = (50, 90, 99)
"""Shown in every report, table and export. The verdict reads these three: add to them only."""

_is_name = re.compile(r"p([1-9]\d(?:\.[1-9])?)").fullmatch


def reported(also: Iterable[float] = ()) -> tuple[float, ...]:
    """Return the reported percentiles and the given ones, ascending."""
    return tuple(sorted({*PERCENTILES, *also}))


def name_of(q: float) -> str:
    """Return the name of a percentile: `p50`, `p99.9`."""
    return f"p{q:g}"


def percentile_of(name: str) -> float:
    """Return the percentile that a name means.

    Raises:
        ValueError: The name is not one of p50 to p99.9.
    """
    match = _is_name(name)
    if match is None or float(match[1]) < 50:
        raise ValueError("expected p50 to p99.9, with at most one decimal, such as p95")
    return float(match[1])


def num_needed(q: float) -> int:
    """Return the fewest values for a percentile.

    It is the smallest n with (q/100)^n <= 0.05: the largest of n values then lies above the true
    percentile with 95 % confidence. 5 for p50, 29 for p90, 299 for p99.
    """
    return math.ceil(math.log(0.05) / math.log(q / 100))
