"""Reward functions of the user: loaded from Python files, and checked when they answer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tuneline.core.errors import ConfigError
from tuneline.core.python_file import import_file

Rewards = Callable[..., list[float]]
"""`(prompts, completions, completion_ids, **columns)` -> one number per completion."""


def load_rewards(names: Sequence[str]) -> list[Rewards]:
    """Return the functions that `file.py:function` names, each of which checks its own answers.

    Raises:
        ConfigError: A file is missing or cannot be imported, or has no such function.
    """
    return [_checked(name, _load(name)) for name in names]


def _load(name: str) -> Callable[..., Any]:
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    key = f"training.method.reward_funcs: {name}"
    if not path.is_file():
        raise ConfigError(
            f"{key}: no such file", hint="The path starts from the directory of run.yaml."
        )
    try:
        module = import_file(path)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{key}: the file cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = sorted(
            entry
            for entry, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        )
        raise ConfigError(
            f"{key}: the file has no function {attribute}",
            hint=f"Its functions: {', '.join(known) or 'none'}.",
        )
    loaded: Callable[..., Any] = function
    return loaded


def _checked(name: str, function: Callable[..., Any]) -> Rewards:
    """Return a function that checks what the user's function answers.

    TRL takes None and numbers that are not finite for "no reward", and goes on.
    """

    @functools.wraps(function)
    def rewards(*, completions: Sequence[Any], **columns: Any) -> list[float]:
        key = f"training.method.reward_funcs: {name}"
        try:
            found = function(completions=completions, **columns)
        except Exception as error:
            raise ConfigError(f"{key}: raised {type(error).__name__}: {error}") from error
        try:
            values = list(found)
        except TypeError:
            raise ConfigError(
                f"{key}: returned {type(found).__name__}; expected a list of "
                f"{len(completions)} numbers"
            ) from None
        if len(values) != len(completions):
            raise ConfigError(
                f"{key}: returned {len(values)} rewards; expected {len(completions)}, one per "
                "answer"
            )
        for index, value in enumerate(values):
            is_number = isinstance(value, int | float) or hasattr(value, "__float__")
            if not is_number or not math.isfinite(float(value)):
                raise ConfigError(
                    f"{key}: the reward of answer {index + 1} is {value!r}; expected a finite "
                    "number"
                )
        return [float(value) for value in values]

    return rewards
