"""The files to which a server records requests with their answers: JSON Lines in a folder.

`serving.middleware.recording` writes them; training and the load test read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.core.errors import DataError

PATTERN = "recorded-*.jsonl"


@dataclass(frozen=True)
class Line:
    """One line of a file; `record` is None if the line is not whole."""

    path: Path
    number: int
    record: dict[str, Any] | None

    @property
    def is_feedback(self) -> bool:
        """Return whether the line is feedback on a request of another line."""
        return self.record is not None and "feedback" in self.record


def recorded_files(folder: Path) -> list[Path]:
    """Return the files of a folder in the order of their beginnings.

    Raises:
        DataError: The folder has none.
    """
    if folder.is_file():
        return [folder]
    found = sorted(folder.glob(PATTERN))
    if not found:
        raise DataError(
            f"{folder}: has no {PATTERN}; expected a folder to which a server records",
            hint="Such a folder is serving.recording.folder of a run.yaml that was served.",
        )
    return found


def read_lines(files: Sequence[Path]) -> Iterator[Line]:
    """Yield every line. A server that was killed leaves half a line at the end of a file.

    Raises:
        DataError: A file cannot be read.
    """
    for path in files:
        try:
            with path.open("rb") as file:
                for number, text in enumerate(file, start=1):
                    yield Line(path, number, _parsed(text))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
