"""The space of a search as Optuna's distributions, and a point of it as values of run.yaml."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from training.config.search import ChoicesConfig, RangeConfig
from tuneline.core.errors import ConfigError

Space = Mapping[str, RangeConfig | ChoicesConfig]
MAX_POINTS = 10_000


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the distribution of each key. Choices are JSON text, since Optuna stores scalars."""
    return {name: _distribution(entry) for name, entry in space.items()}


def values_of(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point of Optuna as values of run.yaml."""
    return {name: _value(entry, params[name]) for name, entry in space.items()}


def params_of(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of run.yaml as a point of Optuna."""
    return {
        name: _text(values[name])
        if isinstance(entry, ChoicesConfig)
        else (int(values[name]) if entry.is_whole else float(values[name]))
        for name, entry in space.items()
    }


def ends_of(entry: RangeConfig | ChoicesConfig) -> list[Any]:
    """Return the two ends of a range, or every choice."""
    if isinstance(entry, ChoicesConfig):
        return list(entry.choices)
    return list(dict.fromkeys([entry.low, entry.high]))


def is_within(entry: RangeConfig | ChoicesConfig, value: Any) -> bool:
    """Return whether a value can be drawn, apart from the step."""
    if isinstance(entry, ChoicesConfig):
        return value in entry.choices
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (
        is_number
        and entry.low <= value <= entry.high
        and not (entry.is_whole and value != int(value))
    )


def grid_points(space: Space) -> list[dict[str, Any]] | None:
    """Return every point of a finite space, as Optuna's; None if there are more than 10,000."""
    columns = [_column(entry) for entry in space.values()]
    total = 1
    for column in columns:
        if column is None or (total := total * len(column)) > MAX_POINTS:
            return None
    points = itertools.product(*(column or () for column in columns))
    return [dict(zip(space, point, strict=True)) for point in points]


def require_grid(space: Space) -> list[dict[str, Any]]:
    """Return every point of a grid.

    Raises:
        ConfigError: A range has no step, or there are too many points.
    """
    endless = [name for name, entry in space.items() if _column(entry) is None]
    if endless:
        raise ConfigError(
            [
                f"search.space.{name}: has endless points; the sampler grid needs a step or choices"
                for name in endless
            ]
        )
    points = grid_points(space)
    if points is None:
        raise ConfigError(
            f"search.space: the grid has more than {MAX_POINTS:,} points",
            hint="Set search.sampler: tpe, or larger steps.",
        )
    return points


def _value(entry: RangeConfig | ChoicesConfig, param: Any) -> Any:
    """Return a number or a choice; Optuna draws 0.30000000000000004 where the step means 0.3."""
    if isinstance(entry, ChoicesConfig):
        return json.loads(param)
    return param if entry.step is None or entry.is_whole else _decimal(param)


def _column(entry: RangeConfig | ChoicesConfig) -> list[Any] | None:
    if isinstance(entry, ChoicesConfig):
        return [_text(value) for value in entry.choices]
    if entry.low == entry.high:
        return [entry.low]
    if entry.is_whole and not (entry.log and entry.high - entry.low > MAX_POINTS):
        return list(range(int(entry.low), int(entry.high) + 1, int(entry.step or 1)))
    if entry.step is None:
        return None
    number = int((entry.high - entry.low) / entry.step + 1e-9) + 1
    return [_decimal(entry.low + place * entry.step) for place in range(number)]


def _distribution(entry: RangeConfig | ChoicesConfig) -> BaseDistribution:
    if isinstance(entry, ChoicesConfig):
        return CategoricalDistribution([_text(value) for value in entry.choices])
    if entry.is_whole:
        step = int(entry.step or 1)
        high = int(entry.low) + (int(entry.high) - int(entry.low)) // step * step
        return IntDistribution(int(entry.low), high, log=entry.log, step=step)
    if entry.step is None:
        return FloatDistribution(float(entry.low), float(entry.high), log=entry.log)
    number = int((entry.high - entry.low) / entry.step + 1e-9)
    highest = _decimal(entry.low + number * entry.step)
    return FloatDistribution(float(entry.low), highest, step=float(entry.step))


def _decimal(value: float) -> float:
    """Return a sum of steps without the error of binary numbers: 0.7, not 0.7000000000000001."""
    return float(f"{value:.12g}")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
