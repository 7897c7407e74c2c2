"""`arrival: constant`: equal gaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.arrivals.pattern import Draw, Pattern
from loadtest.arrivals.renewal import renewal_times

if TYPE_CHECKING:
    from loadtest.arrivals.pattern import Times
    from loadtest.config import Scenario


def times(scenario: Scenario, draw: Draw) -> Times:
    """Return evenly spaced arrivals."""
    import numpy as np

    return renewal_times(scenario, draw, lambda mean_s, count: np.full(count, mean_s))


PATTERN = Pattern(times, steady=("arrival",))
