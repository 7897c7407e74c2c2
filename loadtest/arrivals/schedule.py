"""Arrival times: one absolute schedule, made before the run and never changed by it. Pure.

A client that waits for a slow answer before it sends the next request measures the server only
while the server is well ("coordinated omission"). The schedule therefore fixes every arrival in
advance, in seconds from the start, and latency counts from that time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals.pattern import Draw
from loadtest.arrivals.table import pattern_of
from loadtest.config import Scenario


def arrival_times(
    scenario: Scenario,
    *,
    num_warmup_requests: int,
    seed: int,
    trace_s: Sequence[float] | None = None,
) -> NDArray[np.float64]:
    """Return the arrival times of an open loop, ascending seconds from the start, warm-up first.

    Args:
        scenario: An open loop.
        num_warmup_requests: How many arrivals come before the measured ones.
        seed: Of the random processes.
        trace_s: The times of a trace, for a pattern that replays one.
    """
    if scenario.loop == "closed":
        raise ValueError("a closed loop has no schedule")
    draw = Draw(np.random.default_rng(seed), num_warmup_requests, trace_s or ())
    return pattern_of(scenario).times(scenario, draw)
