"""A load that a study measures: an open-loop rate, or streams at once. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Axis = Literal["rate", "concurrency"]
UNITS: dict[Axis, str] = {"rate": "requests/s", "concurrency": "streams"}


@dataclass(frozen=True)
class Load:
    """A rate in requests per second, or a number of streams that a closed loop keeps in flight."""

    axis: Axis
    value: float

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
        return f"{value} {'stream' if self.concurrency == 1 else UNITS[self.axis]}"
