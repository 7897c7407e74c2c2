"""File formats by suffix. A new format is one file with a reader, and one row here.

A reader turns a file into numbered records: the fields of a row, or what is wrong with the row. It
converts nothing: text stays text, and only JSON and Parquet have other types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.data.formats.delimited import read_csv, read_tsv
from training.data.formats.json_file import read_json
from training.data.formats.json_lines import read_json_lines
from training.data.formats.parquet import read_parquet
from training.data.problem import RowProblem

Record = tuple[int, dict[str, Any] | RowProblem]
"""The number of a line or row, from 1, and its fields or its problem; a field may be a problem."""


@dataclass(frozen=True)
class Format:
    """How a file becomes records.

    Attributes:
        title: The format's name.
        read: Returns the records of a file, one at a time. Raises DataError for a file that cannot
            be read at all.
        unit: The things that a record's number counts.
    """

    title: str
    read: Callable[[Path], Iterator[Record]]
    unit: Literal["line", "row"]


FORMATS = {
    ".jsonl": Format("JSON Lines", read_json_lines, "line"),
    ".json": Format("JSON", read_json, "row"),
    ".csv": Format("CSV", read_csv, "line"),
    ".tsv": Format("TSV", read_tsv, "line"),
    ".parquet": Format("Parquet", read_parquet, "row"),
    ".ndjson": Format("JSON Lines", read_json_lines, "line"),
}
DEFAULT = FORMATS[".jsonl"]
COMPRESSED = (".gz", ".zst")


def find_format(path: Path) -> Format:
    """Return the format that the suffix names; JSON Lines for a suffix that is not in the table."""
    return FORMATS.get(format_suffix(path), DEFAULT)


def row_place(file: str, number: int) -> str:
    """Return the place of a row in words: its file, and its line or its number."""
    return f"{file}: {find_format(Path(file)).unit} {number}"


def format_suffix(path: Path) -> str:
    """Return the suffix that names the format, without one that names a compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix
