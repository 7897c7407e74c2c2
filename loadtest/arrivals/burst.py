"""`arrival: burst`: every request at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.arrivals.pattern import Draw, Pattern

if TYPE_CHECKING:
    from loadtest.arrivals.pattern import Times
    from loadtest.config import Scenario


def times(scenario: Scenario, draw: Draw) -> Times:
    """Return zero for every request."""
    import numpy as np

    assert scenario.num_requests is not None  # noqa: S101 (the configuration requires it)
    return np.zeros(draw.num_warmup_requests + scenario.num_requests)


PATTERN = Pattern(times, rates=(), needs=("num_requests",), all_at_once=True)
