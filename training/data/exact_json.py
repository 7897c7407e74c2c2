"""JSON without silent changes: a repeated name, NaN and a number beyond a float are problems.

Whole numbers keep every digit. A fraction is read as a float, which is JSON's own meaning of it.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from training.data.problem import RowProblem

MAX_DEPTH = 100
"""Most levels of lists and objects: deeper ones end in Python's own limit further on."""


def parse_json(text: str) -> Any:
    """Return the value that the whole text is.

    Raises:
        RowProblem: The text is not JSON, or would not survive being read.
    """
    problems: list[str] = []
    try:
        value = _decoder(problems).decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise RowProblem(f"{line}column {error.colno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise RowProblem(f"not valid JSON: {error}") from None
    problem = _problem(problems, text, value)
    if problem:
        raise RowProblem(problem)
    return value


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
    """Return the value that begins at `start`, or its problem, and the index after the value.

    Raises:
        json.JSONDecodeError, ValueError, RecursionError: No value can be read from there.
    """
    problems: list[str] = []
    value, end = _decoder(problems).raw_decode(text, start)
    problem = _problem(problems, text[start:end], value)
    return (RowProblem(problem) if problem else value), end


def _problem(problems: list[str], text: str, value: Any) -> str:
    """Return the first problem of a value that was read from text; empty if there is none."""
    if not problems and text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        return f"values lie in one another more than {MAX_DEPTH} levels deep"
    if not problems and "\\ud" in text.casefold():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "a text has half a surrogate pair, which UTF-8 cannot write"
    return problems[0] if problems else ""


def _is_deep(value: Any) -> bool:
    """Return whether lists and objects lie in one another more than `MAX_DEPTH` levels deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [entry for entry in level if isinstance(entry, dict | list)]
        level = [
            entry for one in inner for entry in (one.values() if isinstance(one, dict) else one)
        ]
    return any(isinstance(entry, dict | list) for entry in level)


def _decoder(problems: list[str]) -> json.JSONDecoder:
    """Return a decoder that reads on after a problem, so that the value's end is known."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            problems.append(f"field {twice!r} appears twice")
        return result

    def finite(text: str) -> float:
        value = float(text)
        if not isfinite(value):
            problems.append(f"the number {text} is larger than a float can be")
        return value

    def constant(text: str) -> None:
        problems.append(f"{text} is not a JSON value")

    return json.JSONDecoder(object_pairs_hook=unique, parse_float=finite, parse_constant=constant)
