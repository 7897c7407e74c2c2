"""CSV and TSV with a header line. Every cell is text, exactly as it is in the file.

A CSV file whose header has semicolons, tabs or bars and no comma is separated by these.

A reader that guesses types loses data: `None`, `NA` and `null` become empty, `00123` becomes 123, a
long number a float, a date a date of another form. Here a cell `NA` is the text `NA`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from training.data.formats.opening import decode_utf8, open_bytes
from training.data.problem import RowProblem
from tuneline.core.errors import DataError

LONGEST_CELL = 1 << 30
PEEKED_BYTES = 1 << 16
DELIMITERS = (";", "\t", "|")
"""Delimiters of a `.csv` file whose header has no comma: Excel writes `;` if a comma is the decimal
point."""


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    """Return the line on which each row begins, from 1, and its cells or its problem."""
    return _read(path, ",")


def read_tsv(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    """Return the line on which each row begins, from 1, and its cells or its problem."""
    return _read(path, "\t")


def _read(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    csv.field_size_limit(LONGEST_CELL)
    with open_bytes(path) as stream:
        lines = _Lines(stream)
        delimiter = _delimiter(stream.peek(PEEKED_BYTES), delimiter)
        if stream.peek(PEEKED_BYTES)[:4].lower() == b"sep=":
            stream.readline()
            lines.number += 1
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            start = lines.number + 1
            lines.problem = None
            lines.texts.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield start, lines.problem or _syntax_problem(path, error)
                continue
            if cells is None:
                return
            if lines.problem is not None:
                yield start, lines.problem
            elif names is None and any(cells):
                names = _names(path, cells, delimiter)
            elif cells and names is not None and _hides_rows(lines.texts, len(names), delimiter):
                yield (
                    start,
                    RowProblem(
                        f"a quoted cell ends on line {lines.number}, and each of these lines has "
                        f"{len(names)} cells: the quotation mark may be text. Write it twice, in a "
                        "quoted cell"
                    ),
                )
            elif cells and names is not None:
                yield start, _row(names, cells)


class _Lines:
    """The lines of a file as text, with their count and the first that is not UTF-8."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.number = stream, 0
        self.problem: RowProblem | None = None
        self.texts: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            self.number += 1
            try:
                self.texts.append(decode_utf8(line))
                yield self.texts[-1]
            except RowProblem as problem:
                self.problem = self.problem or problem
                yield line.decode("utf-8", errors="replace")


def _delimiter(beginning: bytes, delimiter: str) -> str:
    """Return the delimiter of a file: Excel's line `sep=;` names it, else the header shows it."""
    header = beginning.splitlines()[:1]
    line = header[0].decode("utf-8", errors="replace") if header else ""
    if line[:4].casefold() == "sep=" and len(line) == 5:
        return line[4]
    if delimiter != "," or delimiter in line:
        return delimiter
    return next((mark for mark in DELIMITERS if mark in line), delimiter)


def _syntax_problem(path: Path, error: csv.Error) -> RowProblem:
    problem = RowProblem(f"not valid {path.suffix[1:]}: {error}")
    if "new-line character" in str(error):
        problem.hint = (
            f"If its lines end as on an old Mac: tr '\\r' '\\n' < {path} > lines{path.suffix}"
        )
    return problem


def _hides_rows(lines: list[str], num_columns: int, delimiter: str) -> bool:
    """Return whether a row of a TSV file may be several, because quotation marks are text there.

    Commas are frequent within a cell, so that nothing can be said about CSV.
    """
    return (
        delimiter == "\t"
        and len(lines) > 1
        and num_columns > 1
        and all(line.count(delimiter) == num_columns - 1 for line in lines)
    )


def _names(path: Path, cells: list[str], delimiter: str) -> list[str]:
    """Return the columns' names; a column without a name is called by its place."""
    names = [cell.strip() or f"column {place}" for place, cell in enumerate(cells, start=1)]
    if len(names) == 1 and "," in names[0] and delimiter == "\t":
        raise DataError(
            f"{path}: line 1: the header is the one column {names[0]!r}; expected columns "
            "separated by tabs",
            hint="Give its name the suffix .csv.",
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: line 1: column {twice[0]!r} appears twice in the header")
    return names


def _row(names: list[str], cells: list[str]) -> dict[str, Any] | RowProblem:
    if len(cells) != len(names):
        return RowProblem(f"has {len(cells)} cells; the header has {len(names)}")
    return dict(zip(names, cells, strict=True))
