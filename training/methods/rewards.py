"""Reward functions of the user: loaded from Python files, and checked when they answer."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
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

    TRL takes None and numbers that are not finite for "no reward", and goes on. A function may be
    `async`; an answer that is wrong in training, and not in the check before it, ends the run too.
    """

    @functools.wraps(function)
    def rewards(*, completions: Sequence[Any], **columns: Any) -> list[float]:
        key = f"training.method.reward_funcs: {name}"
        try:
            found = function(completions=completions, **columns)
            if inspect.isawaitable(found):
                found = asyncio.run(_awaited(found))
        except (Exception, SystemExit) as error:
            is_short = "unexpected keyword argument" in str(error)
            raise ConfigError(
                f"{key}: raised {type(error).__name__}: {error}",
                hint="Try: def reward(completions, **columns)" if is_short else None,
            ) from error
        try:
            values = list(found)
        except TypeError:
            raise ConfigError(
                f"{key}: returned {type(found).__name__}; expected a list of "
                f"{len(completions)} numbers"
            ) from None
        except (Exception, SystemExit) as error:  # a generator raises only here
            raise ConfigError(f"{key}: raised {type(error).__name__}: {error}") from error
        if len(values) != len(completions):
            raise ConfigError(
                f"{key}: returned {len(values)} rewards; expected {len(completions)}, one per "
                "answer"
            )
        for index, value in enumerate(values):
            if not _is_finite(value):
                raise ConfigError(
                    f"{key}: the reward of answer {index + 1} is {repr(value)[:60]}; expected a "
                    "finite number"
                )
        return [float(value) for value in values]

    return rewards


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


def _is_finite(value: Any) -> bool:
    """Return whether a value is one finite number, of NumPy or torch too."""
    if isinstance(value, str) or getattr(value, "ndim", False):
        return False
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False
