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
                yield from _rows_of(document, path)


def _is_object(line: bytes) -> bool:
    try:
        as_object(parse_json(decode_utf8(line.strip())))
    except RowProblem:
        return False
    return True


def _rows_of(document: Any, path: Path) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    if isinstance(document, dict) and (program := _program_for(document)) is not None:
        yield (
            1,
            RowProblem(
                f"the file is one object with the keys {', '.join(list(document)[:4])}; expected "
                "an array of rows",
                hint=f"Try: python3 -c 'import json, sys; d = json.load(sys.stdin); "
                f"print(json.dumps({program}))' < {path} > rows.json",
            ),
        )
        return
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


def _program_for(document: dict[str, Any]) -> str | None:
    """Return Python that makes rows of an object that holds them in another way; None for a row.

    Files have columns as lists or as pandas writes them, rows by their ids, or rows next to facts
    about the file.
    """
    values = list(document.values())
    if set(document) == {"columns", "index", "data"}:
        return '[dict(zip(d["columns"], row)) for row in d["data"]]'
    if len(values) > 1:
        for name in WRAPPERS:
            rows = document.get(name)
            if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
                return f'd["{name}"]'
    if values and all(isinstance(value, dict) and value for value in values):
        is_pandas = all(key.isdecimal() for value in values for key in value)
        columns = "[dict(zip(d, row)) for row in zip(*(v.values() for v in d.values()))]"
        return columns if is_pandas else "list(d.values())"
    if len(values) > 1 and all(_is_column(value) for value in values):
        return "[dict(zip(d, row)) for row in zip(*d.values())]"
    return None


def _is_column(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and not isinstance(value[0], dict | list)
