"""Rows of training data. Every row is checked, and all problems are shown at once."""

from __future__ import annotations

from pathlib import Path

from training.data.formats import find_format
from training.data.row import Row
from training.data.shapes import RowProblem, read_shape
from tuneline.core.errors import DataError

NUM_PROBLEMS_SHOWN = 20


def read_rows(path: Path, *, system_prompt: str | None = None) -> list[Row]:
    """Read and check a data file.

    Raises:
        DataError: The file is missing, empty or of another format, or rows cannot be used. Each
            problem reads `file: line N: problem`; the first twenty are shown, then a count.
    """
    data = _read(path)
    source = find_format(path)
    problems, rows = [], []
    for number, fields in source.read(data):
        try:
            if isinstance(fields, RowProblem):
                raise fields
            row = read_shape(fields, number)
        except RowProblem as problem:
            problems.append(f"{path}: line {number}: {problem}")
            continue
        rows.append(row.with_system(system_prompt))
    if problems:
        raise DataError(_shortened(problems), hint=source.hint(data))
    if not rows:
        raise DataError(
            f"{path}: is empty; expected one JSON object on each line",
            hint='Such as: {"instruction": "…", "input": "…", "output": "…"}',
        )
    return rows


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected the training data",
            hint="Set data.path in run.yaml; it is relative to the run.yaml.",
        ) from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory; expected a JSON Lines file") from None
    except PermissionError:
        raise DataError(f"{path}: may not be read; check its permissions") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - NUM_PROBLEMS_SHOWN
    if more <= 0:
        return problems
    return [*problems[:NUM_PROBLEMS_SHOWN], f"… and {more} more lines with problems"]
