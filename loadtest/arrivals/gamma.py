"""`arrival: gamma`: gaps that are burstier or more even than Poisson, by `burstiness`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.arrivals.pattern import Draw, Pattern
from loadtest.arrivals.renewal import renewal_times

if TYPE_CHECKING:
    from loadtest.arrivals.pattern import Times
    from loadtest.config import Scenario


def times(scenario: Scenario, draw: Draw) -> Times:
    """Return arrivals with gamma-distributed gaps, whose variation is 1/sqrt(burstiness)."""
    assert scenario.burstiness is not None  # noqa: S101 (the configuration requires it)
    shape = scenario.burstiness
    return renewal_times(
        scenario,
        draw,
        lambda mean_s, count: draw.rng.gamma(shape, mean_s / shape, count),
        gap_cv=shape**-0.5,
    )


PATTERN = Pattern(times, needs=("burstiness",), steady=("arrival", "burstiness"))
