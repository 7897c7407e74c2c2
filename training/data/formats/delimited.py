"""CSV and TSV with a header line. Every cell is text, exactly as it is in the file.

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
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            start = lines.number + 1
            lines.problem = None
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield start, lines.problem or RowProblem(f"not valid {path.suffix[1:]}: {error}")
                continue
            if cells is None:
                return
            if lines.problem is not None:
                yield start, lines.problem
            elif names is None and any(cells):
                names = _names(path, cells, delimiter)
            elif cells and names is not None:
                yield start, _row(names, cells)


class _Lines:
    """The lines of a file as text, with their count and the first that is not UTF-8."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.number = stream, 0
        self.problem: RowProblem | None = None

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            self.number += 1
            try:
                yield decode_utf8(line)
            except RowProblem as problem:
                self.problem = self.problem or problem
                yield line.decode("utf-8", errors="replace")


def _names(path: Path, cells: list[str], delimiter: str) -> list[str]:
    """Return the columns' names; a column without a name is called by its place."""
    names = [cell.strip() or f"column {place}" for place, cell in enumerate(cells, start=1)]
    if len(names) == 1 and any(mark in names[0] for mark in {";", ",", "\t"} - {delimiter}):
        separator, other = ("tabs", ".csv") if delimiter == "\t" else ("commas", ".tsv")
        raise DataError(
            f"{path}: line 1: the header is the one column {names[0]!r}; expected columns "
            f"separated by {separator}",
            hint="Try: python3 -c 'import csv, sys; csv.writer(sys.stdout).writerows(csv.reader("
            f'sys.stdin, delimiter=";"))\' < {path} > {path.stem}-commas.csv'
            if ";" in names[0]
            else f"Give its name the suffix {other}.",
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: line 1: column {twice[0]!r} appears twice in the header")
    return names


def _row(names: list[str], cells: list[str]) -> dict[str, Any] | RowProblem:
    if len(cells) != len(names):
        return RowProblem(f"has {len(cells)} cells; the header has {len(names)}")
    return dict(zip(names, cells, strict=True))
