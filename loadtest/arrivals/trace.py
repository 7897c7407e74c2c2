"""`arrival: trace`: the times that a workload file holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadtest.arrivals.pattern import Draw, Pattern

if TYPE_CHECKING:
    from loadtest.arrivals.pattern import Times
    from loadtest.config import Scenario


def times(scenario: Scenario, draw: Draw) -> Times:
    """Return the trace's times from its first on, divided by `trace_speed`.

    A trace has no warm-up of its own: its first requests are the warm-up.
    """
    import numpy as np

    found: Times = np.sort(np.asarray(draw.trace_s, np.float64)) / (scenario.trace_speed or 1.0)
    found -= found[0] if len(found) else 0.0
    if scenario.num_requests is not None:
        return found[: draw.num_warmup_requests + scenario.num_requests]
    assert scenario.duration_s is not None  # noqa: S101 (the configuration requires one of the two)
    start_s = found[min(draw.num_warmup_requests, len(found) - 1)]
    inside: Times = found[found <= start_s + scenario.duration_s]
    return inside


def busiest_second(times_s: Sequence[float]) -> float:
    """Return the most arrivals that any second holds, and no less than 1."""
    import numpy as np

    ordered = np.sort(np.asarray(times_s, np.float64))
    ends = np.searchsorted(ordered, ordered + 1.0)
    return float(np.max(ends - np.arange(len(ordered)), initial=1))


PATTERN = Pattern(times, rates=(), takes=("trace_speed",), sources=("mooncake", "otel", "recorded"))
