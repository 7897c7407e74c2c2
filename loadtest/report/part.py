"""Parts that every report shares: strict types, distributions and shares."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from loadtest.percentiles import name_of

Interval = tuple[float | None, float | None]
"""95 % interval; a null bound is infinite."""


class Part(BaseModel):
    """A part of a document. An unknown key, a missing key and a number that is not finite are
    errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Distribution(Part):
    """Percentiles of one metric. Infinite values belong to failed requests."""

    unit: str
    n: int
    """Number of values, failed requests included."""
    mean_of_succeeded: float | None
    max_of_succeeded: float | None
    percentiles: dict[str, float | None]
    """By name (`p50`); null if it is withheld."""
    withheld: dict[str, str] = {}
    """Why a percentile is null."""
    ci95: dict[str, Interval] = {}
    """95 % moving-block bootstrap interval of each percentile; a null bound is infinite."""
    without_interval: dict[str, str] = {}
    """Why a percentile has no interval."""

    def at(self, q: float) -> float | None:
        """Return a percentile; None if it is withheld or not reported."""
        return self.percentiles.get(name_of(q))


class Share(Part):
    """A share of the requests."""

    value: float
    n: int
    num_independent: float
    """As how many independent requests they count: requests that overlap succeed and fail
    together."""
    ci95: tuple[float, float]
    num_needed: int
    """Requests that it takes to see their dependence; with fewer the interval may be too narrow."""
