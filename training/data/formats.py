"""File formats by suffix. A new format is one file with a reader, and one row here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.json_lines import json_lines_hint, read_json_lines
from training.data.shapes import RowProblem


@dataclass(frozen=True)
class Format:
    """How a file becomes objects with named fields."""

    title: str
    read: Callable[[bytes], Iterator[tuple[int, dict[str, Any] | RowProblem]]]
    """The file's bytes -> each row's line, from 1, and its fields or what is wrong with it."""
    hint: Callable[[bytes], str | None]
    """The file's bytes -> what to do when the file cannot be read."""


FORMATS = {".jsonl": Format("JSON Lines", read_json_lines, json_lines_hint)}
DEFAULT = FORMATS[".jsonl"]


def find_format(path: Path) -> Format:
    """Return the format that the suffix names; JSON Lines for a suffix that is not in the table."""
    return FORMATS.get(path.suffix.lower(), DEFAULT)
