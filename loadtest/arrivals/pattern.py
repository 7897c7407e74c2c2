"""The definition of an arrival pattern: a function that returns times, and facts about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from loadtest.config import Scenario

    Times = NDArray[np.float64]


@dataclass(frozen=True)
class Draw:
    """The source from which a pattern draws its times."""

    rng: np.random.Generator
    num_warmup_requests: int
    trace_s: Sequence[float]
    """The times of a trace, in seconds; empty without one."""


@dataclass(frozen=True)
class Pattern:
    """One row of `ARRIVALS`.

    A pattern's module imports numpy inside its functions: the configuration reads this table, and
    reading a run.yaml must not import numpy.
    """

    times: Callable[[Scenario, Draw], Times]
    """Return ascending arrival times in seconds from the start, warm-up first."""
    rates: tuple[str, ...] = ("rate_rps",)
    """Keys of the scenario that hold its rates; empty if the times come from elsewhere."""
    needs: tuple[str, ...] = ()
    """Further keys of the scenario that the pattern needs."""
    takes: tuple[str, ...] = ()
    """Further keys that it accepts."""
    sources: tuple[str, ...] = ()
    """The values of `workload.source` that hold its times; empty for a pattern that draws them."""
    steady: tuple[str, ...] = ()
    """Keys that a short calibration run at the peak rate keeps; the others are Poisson."""
    all_at_once: bool = False
    """Every request is sent at time zero, so that there is no rate."""
