"""When requests are sent: one module per arrival pattern, and the table of them.

To add a pattern, write a module with a `PATTERN` and add a row to `ARRIVALS`
(docs/how-to/add-an-arrival-pattern.md). The configuration, the planning, the calibration, the
shards and the time limits read this table; none of them knows a pattern by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loadtest.arrivals import burst, constant, gamma, poisson, ramp, trace
from loadtest.arrivals.pattern import Pattern

if TYPE_CHECKING:
    from loadtest.config import Scenario

DEFAULT = "poisson"

ARRIVALS: dict[str, Pattern] = {
    "poisson": poisson.PATTERN,
    "constant": constant.PATTERN,
    "gamma": gamma.PATTERN,
    "ramp": ramp.PATTERN,
    "burst": burst.PATTERN,
    "trace": trace.PATTERN,
}


def pattern_of(scenario: Scenario) -> Pattern:
    """Return the pattern of an open loop."""
    return ARRIVALS[scenario.arrival or DEFAULT]


def option_problems(scenario: Scenario) -> list[str]:
    """Return what is wrong with the keys that patterns take, a sentence per key.

    A closed loop has no pattern, and takes none of these keys.
    """
    is_open = scenario.concurrency is None or scenario.arrival is not None
    name = (scenario.arrival or DEFAULT) if is_open else None
    given = scenario.model_dump(exclude_none=True).keys()
    problems = []
    if name is not None:
        pattern = ARRIVALS[name]
        problems += [f"arrival: {name} needs {key}" for key in pattern.needs if key not in given]
        if "rate_rps" in given and "rate_rps" not in pattern.rates:
            problems.append(f"arrival: {name} has its own times and no rate_rps")
    owners: dict[str, list[str]] = {}
    for other, row in ARRIVALS.items():
        for key in dict.fromkeys((*row.rates, *row.needs, *row.takes)):
            owners.setdefault(key, []).append(other)
    problems += [
        f"{key} is for arrival: {' or '.join(names)}"
        for key, names in owners.items()
        if key in given and name not in names and key not in COMMON_KEYS
    ]
    return problems


COMMON_KEYS = ("rate_rps", "num_requests")
"""Keys of a scenario that do not belong to some patterns only."""


def rates(scenario: Scenario) -> dict[str, float]:
    """Return the scenario's rates in requests per second, by key; empty if it has none."""
    names = set(pattern_of(scenario).rates)
    found: dict[str, float] = scenario.model_dump(include=names, exclude_none=True)
    return found


def peak_rps(scenario: Scenario) -> float | None:
    """Return the highest rate; None if the scenario does not say it."""
    return max(rates(scenario).values(), default=None)


def slowest_rps(scenario: Scenario) -> float | None:
    """Return the lowest rate; None if the scenario does not say it."""
    return min(rates(scenario).values(), default=None)


def brief(
    scenario: Scenario, times_s: Sequence[float], *, duration_s: float, max_requests: int
) -> dict[str, Any]:
    """Return the keys of a short scenario that loads a client as this open loop does at its peak.

    Args:
        times_s: The arrival times, for a pattern without rates: the busiest second counts.
        duration_s: About how long.
        max_requests: No more requests than this.
    """
    pattern = pattern_of(scenario)
    if pattern.all_at_once:
        num = min(scenario.num_requests or 100, max_requests)
        return {"arrival": scenario.arrival, "num_requests": num}
    top = peak_rps(scenario)
    if top is None:
        top = trace.busiest_second(times_s)
    # A slower schedule takes too long for a calibration.
    rate_rps = max(top, 10.0)
    num = min(max(math.ceil(rate_rps * duration_s), 10), max_requests)
    kept = scenario.model_dump(include=set(pattern.steady), exclude_none=True)
    return {**kept, "rate_rps": rate_rps, "num_requests": num}
