"""JSON Lines: one JSON object on each line. A file that begins with `[` is read as an array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from training.data.exact_json import parse_json
from training.data.formats.json_array import begins_with_array, read_array
from training.data.formats.opening import decode_utf8, open_bytes
from training.data.problem import RowProblem, kind_of


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    """Return each line's number, from 1, and its object or the line's problem."""
    with open_bytes(path) as stream:
        if begins_with_array(stream):
            yield from read_array(stream)
        else:
            yield from parse_lines(stream)


def parse_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    """Return each line's number, from 1, and its object or the line's problem."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, as_object(parse_json(decode_utf8(line.rstrip(b"\r\n"))))
            except RowProblem as problem:
                yield number, problem


def as_object(value: Any) -> dict[str, Any]:
    """Return a value that is a JSON object.

    Raises:
        RowProblem: It is of another type.
    """
    if not isinstance(value, dict):
        raise RowProblem(f"expected a JSON object, found {kind_of(value)}")
    return value
