"""A client process's check of itself: its lag and its CPU time."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest.histogram import Histogram

MAX_LISTED = 50_000
MAX_THINNED = 2000


@dataclass
class SelfCheck:
    """The client's figures about itself. Times in nanoseconds."""

    loop_lags_ns: list[int]
    """The lag of each tick of the event loop."""
    cpu_s: float
    """User and system CPU time of this process between start and last end."""
    num_connects_in_window: int
    """Requests that waited for a connection of their own."""
    num_spares_opened: int
    """Connections opened ahead of need after the start."""
    num_resent: int
    """Sent again because the server had closed the idle connection."""
    num_closed_at_once: int = 0
    """Of these, the requests that met a connection closed right after its last answer: at most one
    per connection, because the client then uses each for one request only."""
    wall_s: float = 0.0
    steal_share: float | None = None
    throttled_s: float | None = None
    folded_lags: Histogram = field(default_factory=Histogram)
    """Earlier lags of a long run, in seconds."""

    def fold(self) -> None:
        """Keep a long run's list of lags short."""
        if len(self.loop_lags_ns) > MAX_LISTED:
            self.folded_lags.add(np.array(self.loop_lags_ns) / 1e9)
            self.loop_lags_ns.clear()

    @property
    def loop_lags_s(self) -> list[float]:
        """Return the lags, or values with their percentiles."""
        if not self.folded_lags.num_values:
            return [round(lag / 1e9, 9) for lag in self.loop_lags_ns]
        self.folded_lags.add(np.array(self.loop_lags_ns) / 1e9)
        self.loop_lags_ns.clear()
        return self.folded_lags.spread(MAX_THINNED)


@dataclass
class Lags:
    """How long what had arrived lay in the kernel before it was read."""

    seconds: np.ndarray[Any, np.dtype[np.float64]]
    """Of each read, or values with their percentiles."""
    num_reads: int
    num_reads_kernel_clock: int


def self_check_document(check: SelfCheck, lags: Lags) -> dict[str, Any]:
    return {
        "loop_lags_s": check.loop_lags_s,
        "cpu_s": check.cpu_s,
        "wall_s": check.wall_s,
        "steal_share": check.steal_share,
        "throttled_s": check.throttled_s,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "num_connects_in_window": check.num_connects_in_window,
        "num_spares_opened": check.num_spares_opened,
        "num_resent": check.num_resent,
        "num_closed_at_once": check.num_closed_at_once,
        "num_reads": lags.num_reads,
        "num_reads_kernel_clock": lags.num_reads_kernel_clock,
        "read_lags_s": _thinned(lags.seconds),
    }


def _thinned(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """Return at most MAX_THINNED order statistics, with the largest: enough for percentiles."""
    if len(values) > MAX_THINNED:
        places = np.linspace(0, len(values) - 1, MAX_THINNED).round().astype(np.int64)
        values = np.sort(values)[places]
    return [float(value) for value in values]
