"""Conversion of any readable file to JSON Lines that every step here reads alike.

Each row that is written is read back and compared with the row that was read, so that a conversion
loses nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from training.config.data import ReadingConfig, SourceConfig
from training.data.formats import row_place
from training.data.problem import RowProblem
from training.data.row import Kind, Row
from training.data.rows import Counts, stream_rows
from training.data.shapes import read_shape
from training.data.sources import open_source
from tuneline.core.disk import cannot_write
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import Message

TARGETS: dict[str, Kind] = {
    "messages": "answer",
    "prompt-completion": "answer",
    "preference": "preference",
    "label": "label",
    "prompt": "prompt",
    "text": "text",
    "retrieval": "retrieval",
}
"""Each form that can be written, and the kind of its rows."""


def convert_data(
    path: str,
    out: Path,
    *,
    to: str | None = None,
    reading: ReadingConfig | None = None,
    bad_rows: Literal["refuse", "drop"] = "refuse",
) -> Counts:
    """Write the rows of a file, a folder or a dataset of the Hub as JSON Lines.

    Args:
        path: As `data.path`, relative to the current folder.
        out: The new file; it appears when every row is written.
        to: A form of `TARGETS`; that of the rows' kind if not given.
        reading: How the source is read.
        bad_rows: Whether a row that cannot be read is an error, or is dropped and counted.

    Returns:
        The counts of rows.

    Raises:
        ConfigError: `out` exists, or `to` is not a form.
        DataError: Rows cannot be read, or do not fit the form.
    """
    if to is not None and to not in TARGETS:
        raise ConfigError(f"--to {to}: is not a form; expected one of: {', '.join(TARGETS)}")
    if out.exists():
        raise ConfigError(f"{out}: exists; expected a new file", hint="Give another --out.")
    given = {} if reading is None else reading.model_dump()
    source = open_source(SourceConfig(path=path, **given), Path(), "FILE")
    counts = Counts()
    num_written = 0
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for line in _lines(stream_rows([source], counts, bad_rows=bad_rows), to):
                file.write(line)
                num_written += 1
        counts.check(num_written)
        partial.replace(out)
    except OSError as error:
        raise cannot_write(out, error) from None
    finally:
        with contextlib.suppress(OSError):  # it is not there if its folder cannot have it
            partial.unlink()
    return counts


def _lines(rows: Iterable[Row], to: str | None) -> Iterator[str]:
    first: str | None = to
    for row in rows:
        if first is None:
            first = next(name for name, kind in TARGETS.items() if kind == row.kind)
        if TARGETS[first] != row.kind:
            fitting = next(name for name, kind in TARGETS.items() if kind == row.kind)
            raise DataError(
                f"{row_place(row.file, row.line)}: has the form {fitting}; expected {first}",
                hint=f"Try: --to {fitting}" if to else "Give each kind of rows a file of its own.",
            )
        written = write_row(row, first)
        _check_same(row, written, first)
        yield json.dumps(written, ensure_ascii=False) + "\n"


def write_row(row: Row, to: str) -> dict[str, Any]:
    """Return a row in one of the forms of `TARGETS`; its other columns follow."""
    if to == "messages":
        value: dict[str, Any] = {"messages": _weighted(row.messages, row.untrained)}
    else:
        value = replace(row, fields={}, untrained=()).as_json()
        if "prompt" in value:
            value["prompt"] = _weighted(value["prompt"], row.untrained)
    tools = {"tools": list(row.tools)} if row.tools else {}
    return {**row.fields, **value, **tools}


def _weighted(messages: Iterable[Message], untrained: tuple[int, ...]) -> list[Message]:
    return [
        {**message, "weight": 0} if index in untrained else message
        for index, message in enumerate(messages)
    ]


def _check_same(row: Row, written: dict[str, Any], to: str) -> None:
    """Check that the form is read as the row that it was made of."""
    try:
        again: Row | None = read_shape(written)
    except RowProblem:
        again = None
    if again != replace(row, line=0, file="", source=0):
        columns = ", ".join(map(repr, row.fields)) or "none"
        raise DataError(
            f"{row_place(row.file, row.line)}: the form {to} would be read as another row; its "
            f"other columns are {columns}",
            hint="A column has a name that the form uses. Try: --column category=NAME, or "
            "--column NAME= to leave it out.",
        )
