"""A load that a study measures: an open-loop rate, or streams at once; of requests, or of
conversations. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loadtest.config import LoadTestConfig

Axis = Literal["rate", "concurrency"]
Arrivals = Literal["requests", "conversations"]


def arrivals_of(config: LoadTestConfig) -> Arrivals:
    """Return the unit of arrival: with `workload.sessions`, a conversation."""
    return "requests" if config.workload.sessions is None else "conversations"


def unit_of(axis: Axis, arrivals: Arrivals) -> str:
    """Return the unit of a load."""
    if axis == "rate":
        return f"{arrivals}/s"
    return "streams" if arrivals == "requests" else "conversations"


@dataclass(frozen=True)
class Load:
    """A rate of arrivals per second, or a number of streams or conversations that a closed loop
    keeps in flight."""

    axis: Axis
    value: float
    arrivals: Arrivals = "requests"

    @property
    def rate_rps(self) -> float | None:
        return self.value if self.axis == "rate" else None

    @property
    def concurrency(self) -> int | None:
        return round(self.value) if self.axis == "concurrency" else None

    @property
    def name(self) -> str:
        """Return the name of its scenario."""
        word = "rate" if self.axis == "rate" else "streams"
        value = f"{self.value:.4g}" if self.axis == "rate" else str(self.concurrency)
        return f"{word}-{value}".replace(".", "-").replace("+", "")

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if self.axis == "rate" else str(self.concurrency)
        unit = unit_of(self.axis, self.arrivals)
        return f"{value} {unit.removesuffix('s') if self.concurrency == 1 else unit}"
