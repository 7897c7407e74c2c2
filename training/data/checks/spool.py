"""Rows on disk: written once in order, read again by their index."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Self

from training.data.formats import row_place
from training.data.row import Row
from tuneline.core.disk import cannot_write
from tuneline.core.progress import progress

SHOWN_ROWS = 1_000
"""Rows between two updates of the progress: an update takes longer than a row."""


@dataclass
class Spool:
    """A file of rows, and where each row begins.

    A row takes 25 bytes of memory, whatever its size; its text is on disk.
    """

    path: Path
    offsets: array[int] = field(default_factory=lambda: array("Q", [0]))
    """Where each row begins, and where the last row ends."""
    lines: array[int] = field(default_factory=lambda: array("Q"))
    files: array[int] = field(default_factory=lambda: array("I"))
    """For each row, the index of its file in `file_names`."""
    heldout: array[int] = field(default_factory=lambda: array("B"))
    sources: array[int] = field(default_factory=lambda: array("I"))
    file_names: list[str] = field(default_factory=list)
    _reader: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.detach()
        self.path.unlink(missing_ok=True)

    def detach(self) -> None:
        """Close the file; the next read opens it again. An open file cannot go to a process."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def add(self, rows: Iterable[Row], *, heldout: bool = False) -> None:
        """Append rows.

        Raises:
            DiskFullError: The disk has too little space.
        """
        known = {name: index for index, name in enumerate(self.file_names)}
        at = self.offsets[-1]
        try:
            with self.path.open("ab") as file, progress("reading rows", unit="rows") as advance:
                for row in rows:
                    if len(self) % SHOWN_ROWS == 0:
                        advance(len(self))
                    if row.file not in known:
                        known[row.file] = len(self.file_names)
                        self.file_names.append(row.file)
                    data = json.dumps(row.as_json(), ensure_ascii=False).encode() + b"\n"
                    file.write(data)
                    at += len(data)
                    self.offsets.append(at)
                    self.lines.append(row.line)
                    self.files.append(known[row.file])
                    self.heldout.append(heldout)
                    self.sources.append(row.source)
        except OSError as error:
            # Readers turn the errors of their own files into a DataError.
            raise cannot_write(self.path, error) from None

    def read(self, index: int) -> Row:
        """Return one row."""
        if self._reader is None:
            self._reader = self.path.open("rb")
        self._reader.seek(self.offsets[index])
        data = self._reader.read(self.offsets[index + 1] - self.offsets[index])
        return self._row(data, index)

    def read_all(self, start: int = 0, end: int | None = None) -> Iterator[Row]:
        """Return rows in order."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[start])
            for index in range(start, len(self) if end is None else end):
                yield self._row(file.readline(), index)

    def place(self, index: int) -> str:
        """Return a row's file and line, as messages name them."""
        return row_place(self.file_names[self.files[index]], self.lines[index])

    def _row(self, data: bytes, index: int) -> Row:
        name = self.file_names[self.files[index]]
        row = Row.from_json(json.loads(data), self.lines[index], name)
        source = self.sources[index]
        return replace(row, source=source) if source else row
