"""Rows of training data, one at a time; every row is checked, and all problems are shown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from training.config.data import SourceConfig
from training.data.formats import FORMATS, Format, find_format, format_suffix
from training.data.formats.opening import hint_for
from training.data.problem import RowProblem
from training.data.row import Row
from training.data.shapes import read_shape
from training.data.sources import Source
from tuneline.core.errors import DataError
from tuneline.core.progress import logger

NUM_PROBLEMS_SHOWN = 20
NUM_ALIKE_SHOWN = 3
UNREADABLE = "cannot be read"
PARQUET_AS_LINES = (
    "First, as jq reads JSON: python -c 'import json, sys, pyarrow.parquet as p; [print(json.dumps("
    "row, default=str)) for batch in p.ParquetFile(sys.argv[1]).iter_batches() for row in "
    "batch.to_pylist()]' ROWS.parquet > FILE"
)


@dataclass
class Counts:
    """The rows that entered, and those that left, by reason. Every step that drops rows adds."""

    num_read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def num_kept(self) -> int:
        """Return the number of rows that were read and not dropped."""
        return self.num_read - sum(self.dropped.values())

    def drop(self, reason: str, num_rows: int = 1) -> None:
        if num_rows:
            self.dropped[reason] = self.dropped.get(reason, 0) + num_rows

    def check(self, num_kept: int) -> None:
        """Check that every row is accounted for; a difference is a bug of this package."""
        if self.num_kept != num_kept:
            raise RuntimeError(
                f"{self.num_read} rows were read, {num_kept} are kept and "
                f"{self.num_read - self.num_kept} are dropped"
            )


def stream_rows(
    sources: Sequence[Source],
    counts: Counts,
    *,
    system_prompt: str | None = None,
    bad_rows: Literal["refuse", "drop"] = "refuse",
) -> Iterator[Row]:
    """Return the rows of all sources in order, one at a time; `Row.source` counts the sources.

    Raises:
        DataError: After the last row, if rows cannot be read, each as `file: line N: problem`; the
            first twenty are shown, at most three of one problem, then a count. At once, if a file
            cannot be read or a source has no rows. With `bad_rows` `drop`, rows that cannot be read
            are counted and shown as warnings, and it is an error that none is left.
    """
    problems: list[str] = []
    alike: Counter[str] = Counter()
    num_problems = 0
    hint = None
    for index, source in enumerate(sources):
        num_before = counts.num_read
        for path in source.files:
            for found in _read_file(path, source.config):
                counts.num_read += 1
                if isinstance(found, Row):
                    yield replace(found, source=index).with_system(system_prompt)
                    continue
                counts.drop(UNREADABLE)
                num_problems += 1
                text = str(found.problem)
                most = 1 if found.problem.is_of_file else NUM_ALIKE_SHOWN
                kind = re.sub(r"\d+", "0", text)
                if len(problems) < NUM_PROBLEMS_SHOWN and alike[kind] < most:
                    alike[kind] += 1
                    problems.append(f"{found.where}: {text}")
                    hint = hint or hint_for(path) or found.problem.hint or _hint_for(text, path)
        if counts.num_read == num_before:
            raise DataError(
                f"{source.files[0] if len(source.files) == 1 else source.config.path}: is empty; "
                "expected one row at least",
                hint='Such as: {"instruction": "…", "input": "…", "output": "…"}',
            )
    if num_problems > len(problems):
        num_more = num_problems - len(problems)
        lines = "line" if num_more == 1 else "lines"
        problems.append(f"… and {num_more} more {lines} with problems")
    if problems and num_problems == counts.num_read:
        raise DataError(problems, hint=hint)
    if problems and bad_rows == "refuse":
        drop = (
            "Mend these rows, or drop and count them: data.bad_rows: drop in run.yaml, or "
            "--drop-bad-rows of init, data check and data convert."
        )
        raise DataError(problems, hint=f"{hint}\n  {drop}" if hint else drop)
    for problem in problems:
        logger.warning("  dropped: %s", problem)


def _hint_for(problem: str, path: Path) -> str | None:
    """Return what to do about a column that `data.columns` names or of another type, or about a
    file of an unknown format."""
    if "not valid JSON" in problem and (suffix := format_suffix(path)) not in FORMATS:
        return f"The file is read as JSON Lines, because its suffix {suffix!r} is not known."
    if named := re.search(r"missing field (.+?), which data.columns names", problem):
        return (
            f"Change the value {named[1]} in data.columns, or in --column, to the name of a column "
            "of the file."
        )
    if left := re.search(
        r"field '(\w+)[^']*': .*(?:JSON value|a list, found|keys of text)", problem
    ):
        return f"Leave the column out: data.columns: {{{left[1]}: null}}, or --column {left[1]}=."
    if "expected text, found a number" in problem:
        return 'Write numbers as text, such as "42", and class labels by their names.'
    return None


def read_rows(
    path: Path, *, system_prompt: str | None = None, config: SourceConfig | None = None
) -> list[Row]:
    """Read and check one data file.

    Raises:
        DataError: The file is missing, empty or of another format, or rows cannot be used; see
            `stream_rows`.
    """
    config = config or SourceConfig(path=str(path))
    source = Source(config, (path,), "data.path")
    return list(stream_rows([source], Counts(), system_prompt=system_prompt))


@dataclass(frozen=True)
class _Unread:
    """The problem of one row, with its file and line."""

    where: str
    problem: RowProblem


def _read_file(path: Path, config: SourceConfig) -> Iterator[Row | _Unread]:
    """Return each row of a file, or its problem."""
    source: Format = find_format(path)
    for number, found in source.read(path):
        try:
            if isinstance(found, RowProblem):
                raise found
            columns = _renamed(found, config.columns)
            for value in columns.values():
                if isinstance(value, RowProblem):
                    raise value
            row = read_shape(columns, config.shape)
        except RowProblem as problem:
            problem.hint = _of_file(problem.hint, path, config.columns)
            yield _Unread(f"{path}: {source.unit} {number}", problem)
            continue
        yield replace(row, line=number, file=str(path))


def _of_file(hint: str | None, path: Path, columns: Mapping[str, str | None]) -> str | None:
    """Return a hint whose command names the file's columns, and reads the file's format."""
    if hint is None or "jq -c" not in hint:
        return hint
    for ours, theirs in columns.items():
        if theirs is not None and re.fullmatch(r"[\w.]+", theirs):
            hint = re.sub(rf"(?<=[( ]\.){ours}\b", theirs, hint)
    return f"{PARQUET_AS_LINES}\n  {hint}" if format_suffix(path) == ".parquet" else hint


def _renamed(row: dict[str, Any], columns: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a row under our names of columns; `columns` maps our name to the file's.

    Raises:
        RowProblem: A column that the configuration names is not there.
    """
    if not columns:
        return row
    named = {ours: _at(row, theirs) for ours, theirs in columns.items() if theirs is not None}
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | named


def _at(row: dict[str, Any], name: str) -> Any:
    """Return the value of a column, or of a place inside one, such as `responses.answer.0.value`.

    Raises:
        RowProblem: The row has no such place.
    """
    steps = name.split(".")
    value: Any = row
    while steps:
        # A key may hold a dot itself: the longest one that is there is meant.
        keys = [".".join(steps[:end]) for end in range(len(steps), 0, -1)]
        if isinstance(value, dict) and (key := next((k for k in keys if k in value), None)):
            value = value[key]
            steps = steps[key.count(".") + 1 :]
        elif isinstance(value, list) and steps[0].isdecimal() and int(steps[0]) < len(value):
            value = value[int(steps.pop(0))]
        else:
            raise RowProblem(
                f"missing field {name!r}, which data.columns names; found {', '.join(row)}"
            )
    return value
