"""A user's own metric: a function in a Python file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction
from tuneline.core.errors import ConfigError
from tuneline.core.python_file import import_file


def score_python(predictions: Sequence[Prediction], config: EvaluationConfig) -> Scored:
    """Return `function(prediction)` of each row.

    The function gets a dict with `prompt`, `expected`, `answer`, `tool_calls` and `finish_reason`,
    and returns a number, a boolean, or None for a row that it does not apply to.

    Raises:
        ConfigError: The function cannot be loaded, raises, or returns another type.
    """
    where = f"evaluation.python: {config.python}"
    function = chosen_function(config)
    values: list[float | None] = []
    for number, prediction in enumerate(predictions, start=1):
        row = prediction.model_dump(mode="json", exclude={"scores"})
        # The function is the user's code and may raise anything.
        try:
            value = function(row)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{where}: held-out row {number}: {type(error).__name__}: {error}"
            ) from error
        if not _is_finite(value):
            raise ConfigError(
                f"{where}: held-out row {number}: returned {str(value)[:60]!r}; expected a finite "
                "number, a boolean or None"
            )
        values.append(None if value is None else float(value))
    return Scored(values)


def chosen_function(config: EvaluationConfig) -> Callable[[dict[str, Any]], Any]:
    """Return the function of the metric `python`.

    Raises:
        ConfigError: None is chosen, or it cannot be loaded.
    """
    if config.python is None:
        raise ConfigError(
            "evaluation.metrics: python needs evaluation.python; found none",
            hint="Try: --set evaluation.python=metric.py:score",
        )
    return load_function(config.python)


def _is_finite(value: Any) -> bool:
    """Return whether a value is a number, of NumPy too, that fits into a float; None is fine."""
    if value is None:
        return True
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:
        return False


def load_function(spec: str) -> Callable[[dict[str, Any]], Any]:
    """Return the function that `file.py:function` names.

    Raises:
        ConfigError: There is no such file or function, or the file raises.
    """
    path, _, name = spec.rpartition(":")
    where = f"evaluation.python: {spec}"
    if not path or not name.isidentifier():
        raise ConfigError(f"{where}: expected file.py:function")
    if not Path(path).is_file():
        raise ConfigError(f"{where}: {path} is not a file")
    if not path.endswith(".py"):
        raise ConfigError(f"{where}: {path} is not a Python file; expected a name that ends in .py")
    try:
        module = import_file(Path(path))
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: {path} raises {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{where}: {path} has no function {name}")
    return function  # type: ignore[no-any-return]
