"""`arrival: poisson`: independent users. Gaps are exponential."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.arrivals.pattern import Draw, Pattern
from loadtest.arrivals.renewal import renewal_times

if TYPE_CHECKING:
    from loadtest.arrivals.pattern import Times
    from loadtest.config import Scenario


def times(scenario: Scenario, draw: Draw) -> Times:
    """Return the arrivals of a Poisson process."""
    return renewal_times(scenario, draw, draw.rng.exponential)


PATTERN = Pattern(times)
