"""Parquet. Text stays text; a type that JSON does not have becomes text of one fixed form.

Parquet has one set of keys for every message of a file, and fills absent keys with nulls. A null
inside a list or an object therefore counts as an absent key.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from training.data.formats.opening import named
from training.data.problem import RowProblem
from tuneline.core.environment import require
from tuneline.core.errors import DataError

BATCH_ROWS = 1024


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    """Return each row's number, from 1, and its fields; a field may be a problem."""
    pyarrow = require("pyarrow", "train")
    parquet = require("pyarrow.parquet", "train")
    number = 0
    try:
        with named(path), path.open("rb") as stream, parquet.ParquetFile(stream) as file:
            names = file.schema_arrow.names
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise DataError(f"{path}: column {twice[0]!r} appears twice")
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield number, _plain_row(row)
    except (pyarrow.ArrowException, ValueError, OverflowError, KeyError) as error:
        raise DataError(
            f"{path}: row {number + 1} or after: not valid Parquet: {str(error).splitlines()[0]}"
        ) from None


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row, each as its value or its problem: a run may leave it out."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        try:
            found[name] = _plain(value, name)
        except RowProblem as problem:
            found[name] = problem
    return found


def _plain(value: Any, where: str) -> Any:
    """Return a value in the types of JSON; keys of inner objects that are null are left out."""
    if isinstance(value, dict):
        if wrong := next((key for key in value if not isinstance(key, str)), None):
            raise RowProblem(f"field {where!r}: expected keys of text, found {wrong!r}")
        return {k: _plain(v, f"{where}.{k}") for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, float) and not isfinite(value):
        raise RowProblem(f"field {where!r}: {value} is not a JSON value")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):  # some writers do not mark a column of bytes as text
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            pass
    found = "bytes" if isinstance(value, bytes) else type(value).__name__
    raise RowProblem(f"field {where!r}: expected text, a number or a list, found {found}")
