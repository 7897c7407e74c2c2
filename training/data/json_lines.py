"""JSON Lines: one JSON object on each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from training.data.shapes import RowProblem, kind_of


def read_json_lines(data: bytes) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    """Return each line's number, from 1, and its object or what is wrong with the line."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, _parse(line)
            except RowProblem as problem:
                yield number, problem


def json_lines_hint(data: bytes) -> str | None:
    """Return what to do about a file that is not JSON Lines."""
    if data.lstrip().startswith(b"["):
        return (
            "The file begins with '[': if it is one JSON array, make JSON Lines of it: "
            "jq -c '.[]' FILE > FILE.jsonl"
        )
    return None


def _parse(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowProblem(f"byte {error.start + 1}: not UTF-8 text ({error.reason})") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise RowProblem(f"column {error.colno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise RowProblem(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RowProblem(f"expected a JSON object, found {kind_of(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowProblem(f"field {twice!r} appears twice")
    return result
