"""JSON: an array of objects, an object that holds such an array, or JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from training.data.exact_json import parse_json
from training.data.formats.json_array import begins_with_array, read_array
from training.data.formats.json_lines import as_object, parse_lines
from training.data.formats.opening import decode_utf8, open_bytes
from training.data.problem import RowProblem, kind_of

WRAPPERS = ("data", "rows", "examples", "train", "instances")
"""Names of the only key of an object that holds the rows."""


def read_json(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    """Return each row's number, from 1, and its object or its problem.

    Many files called `.json` are JSON Lines: the first or the second line then is a whole object.
    """
    with open_bytes(path) as stream:
        if begins_with_array(stream):
            yield from read_array(stream)
            return
        lines = (line for line in stream if line.strip())
        head = list(islice(lines, 2))
        if len(head) == 2 and any(_is_object(line) for line in head):
            yield from parse_lines(chain(head, lines))
        elif head:
            try:
                document = parse_json(decode_utf8(b"".join([*head, *lines])))
            except RowProblem as problem:
                yield 1, problem
            else:
                yield from _rows_of(document)


def _is_object(line: bytes) -> bool:
    try:
        as_object(parse_json(decode_utf8(line.strip())))
    except RowProblem:
        return False
    return True


def _rows_of(document: Any) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    rows = [document]
    if isinstance(document, dict) and len(document) == 1 and set(document) & set(WRAPPERS):
        [(name, rows)] = document.items()
        if not isinstance(rows, list):
            yield 1, RowProblem(f"field {name!r}: expected a list of rows, found {kind_of(rows)}")
            return
    for number, row in enumerate(rows, start=1):
        try:
            yield number, as_object(row)
        except RowProblem as problem:
            yield number, problem
