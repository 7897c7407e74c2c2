"""More training rows from those of a dataset: by a user's function, or by a model that rewrites.

Rows come from a dataset's training rows only, after the split, so no held-out row is rewritten. New
rows that equal another row, or whose prompt is equal or similar to a held-out prompt, are dropped.
"""

from __future__ import annotations

import errno
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from training.config.checks import ChecksConfig
from training.data.checks.run import check_rows
from training.data.checks.spool import Spool
from training.data.convert import TARGETS, write_row
from training.data.prepare import num_dataset_rows, stream_dataset
from training.data.problem import RowProblem
from training.data.row import Row
from training.data.shapes import SHAPES, read_shape
from tuneline.core.artifact import Artifact, canonical_digest
from tuneline.core.dataset import HELDOUT_FILE, TRAIN_FILE
from tuneline.core.disk import cannot_write
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, DataError, DiskFullError
from tuneline.core.messages import bare_answer, content_of, plain_text
from tuneline.core.progress import logger, progress
from tuneline.core.python_file import import_file
from tuneline.core.server_words import text_of

REQUEST = (
    "Rewrite the user's message in other words. Keep its language, its meaning, and every name, "
    "number and code. Answer with the rewritten message only."
)
TIMEOUT_S = 120
MAX_RETRIES = 6
"""Of one request: a provider that limits the rate answers 429 until its window has passed."""
NUM_AT_ONCE = 8
"""Rows that an endpoint rewrites at the same time."""
KEPT_CHECKS = ("duplicates", "leakage", "near_leakage", "empty_answers")

Writer = Callable[[Row], list[Row]]
"""A training row -> new rows."""


@dataclass
class Augmented:
    """The counts of an augmentation: rows that were made are rows written plus rows dropped.

    `num_unmade` is the number of rewrites that make no row: they are cut off, empty or equal to
    their original except for case and spacing, or the original has no message of a user.
    """

    num_originals: int = 0
    num_made: int = 0
    num_unmade: int = 0
    num_written: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


def augment_data(
    dataset: Artifact, write: Writer, out: Path, *, origin: str, max_rows: int = 1_000,
    endpoint: Endpoint | None = None, copies: int = 0,
) -> Augmented:  # fmt: skip
    """Write new rows as JSON Lines; their column `origin` names the writer and the original row.

    An interrupted call continues: each original's new rows are kept in `.<out>.partial`, which
    belongs to one dataset and one origin.

    Args:
        dataset: A dataset artifact.
        write: Makes new rows of one row.
        out: The new file; it appears when every row is written.
        origin: The writer's name.
        max_rows: The first training rows of which new rows are made.
        endpoint: The endpoint that `write` asks: what that costs is shown, and several rows are
            rewritten at once.
        copies: The rewrites of each row that `write` asks for.

    Raises:
        ConfigError: `out` exists, or the partial file belongs to another call.
        DataError: The writer's rows cannot be used.
        ServerError: The endpoint fails.
        ArtifactError, DiskFullError: `out` cannot be written; the rows so far are kept.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists; expected a new file", hint="Give another --out.")
    try:
        return _augment(dataset, write, out, origin, max_rows, endpoint, copies)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{out}: the disk is full, there or in the folder of temporary files",
                hint="Free some space and run the same command again; the rows so far are kept.",
            ) from error
        raise cannot_write(out, error) from error


def _augment(
    dataset: Artifact, write: Writer, out: Path, origin: str, max_rows: int,
    endpoint: Endpoint | None, copies: int,
) -> Augmented:  # fmt: skip
    partial = out.with_name(f".{out.name}.partial")
    num_rows = min(max_rows, num_dataset_rows(dataset, TRAIN_FILE))
    num_done = _continue(partial, {"dataset": dataset.digest, "origin": origin})

    def left() -> Iterator[Row]:
        return islice(stream_dataset(dataset, TRAIN_FILE), num_done, num_rows)

    if endpoint is not None:
        _say_cost(left(), endpoint, copies)
    num_at_once = NUM_AT_ONCE if endpoint is not None else 1
    with (
        partial.open("a", encoding="utf-8") as file,
        progress("making rows", num_rows, "rows") as advance,
    ):
        written_rows = _written(write, left(), num_at_once)
        for done, (row, written) in enumerate(written_rows, start=num_done + 1):
            told = {"origin": f"{origin} line {row.line}"}
            new = [
                _columns(replace(one, fields={**row.fields, **one.fields, **told}))
                for one in written
            ]
            file.write(json.dumps(new, ensure_ascii=False) + "\n")
            file.flush()
            advance(done)
    counts = Augmented(num_originals=num_rows)
    _write_checked(dataset, partial, out, counts)
    counts.num_unmade = max(copies * num_rows - counts.num_made, 0)
    partial.unlink()
    return counts


def _say_cost(rows: Iterable[Row], endpoint: Endpoint, copies: int) -> None:
    """Log the requests before the first is sent."""
    lengths = [
        len(content_of(row.prompt[asked])) for row in rows if (asked := _asked(row)) is not None
    ]
    num_requests = copies * len(lengths)
    sent = copies * sum(lengths) + num_requests * len(REQUEST)
    logger.info(
        "  %s: %s requests to %s with %s characters, and answers of about %s characters",
        endpoint.url, f"{num_requests:,}", endpoint.model, f"{sent:,}",
        f"{sent - num_requests * len(REQUEST):,}",
    )  # fmt: skip


def _written(
    write: Writer, rows: Iterable[Row], num_at_once: int
) -> Iterator[tuple[Row, list[Row]]]:
    """Return each row with its new rows, in order; an error ends the rows after it too."""
    if num_at_once == 1:
        yield from ((row, write(row)) for row in rows)
        return
    waiting: deque[tuple[Row, Future[list[Row]]]] = deque()
    pool = ThreadPoolExecutor(num_at_once)
    try:
        for row in rows:
            waiting.append((row, pool.submit(write, row)))
            if len(waiting) == 2 * num_at_once:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _continue(partial: Path, head: dict[str, str]) -> int:
    """Make the partial file ready for more lines; return the number of originals that are done."""
    num_lines, size = 0, 0
    if partial.exists():
        with partial.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # half-written
                if not num_lines and json.loads(line) != head:
                    raise ConfigError(
                        f"{partial}: belongs to another dataset or writer; expected that of this "
                        "call",
                        hint=f"Try: rm {partial}",
                    )
                num_lines, size = num_lines + 1, size + len(line)
        os.truncate(partial, size)
    if not num_lines:
        partial.write_text(json.dumps(head) + "\n", encoding="utf-8")
    return max(num_lines - 1, 0)


def _made_rows(partial: Path, num_originals: int) -> Iterator[dict[str, Any]]:
    """Return the new rows of the first originals."""
    with partial.open(encoding="utf-8", newline="\n") as file:
        for line in islice(file, 1, num_originals + 1):
            yield from json.loads(line)


def _write_checked(dataset: Artifact, partial: Path, out: Path, counts: Augmented) -> None:
    """Write the new rows that are new and leak nothing. No more than one row is in memory."""
    actions = dict.fromkeys(ChecksConfig.model_fields, "ignore") | dict.fromkeys(KEPT_CHECKS, "fix")
    checks = ChecksConfig.model_validate({k: v for k, v in actions.items() if k != "length"})
    kept = out.with_name(f".{out.name}.rows")
    with TemporaryDirectory() as folder, Spool(Path(folder) / "rows.jsonl") as spool:
        spool.add(stream_dataset(dataset, TRAIN_FILE))
        first = len(spool)
        made = _made_rows(partial, counts.num_originals)
        spool.add(_row(value, number) for number, value in enumerate(made, start=1))
        counts.num_made = len(spool) - first
        spool.add(stream_dataset(dataset, HELDOUT_FILE), heldout=True)
        checked = check_rows(spool, checks)
        made = _made_rows(partial, counts.num_originals)
        with kept.open("w", encoding="utf-8") as file:
            for index, value in enumerate(made, start=first):
                if reason := int(checked.whole.dropped[index]):
                    name = checked.whole.reasons[reason - 1]
                    counts.dropped[name] = counts.dropped.get(name, 0) + 1
                else:
                    file.write(json.dumps(value, ensure_ascii=False) + "\n")
                    counts.num_written += 1
    kept.replace(out)


def _columns(row: Row) -> dict[str, Any]:
    """Return a row with its other columns next to its texts, as every reader takes it.

    Columns by which it would be read as another row are left out: `data.shape` may have settled
    what the original is.
    """
    form = next(name for name, kind in reversed(TARGETS.items()) if kind == row.kind)
    value = write_row(row, form)
    try:
        is_same = read_shape(value) == replace(row, line=0, file="", source=0)
    except RowProblem:
        is_same = False
    if is_same:
        return value
    taken = {name for shape in SHAPES.values() for name in (*shape.required, *shape.optional)}
    return write_row(
        replace(row, fields={k: v for k, v in row.fields.items() if k not in taken}), form
    )


def _row(value: dict[str, Any], line: int) -> Row:
    """Return a row of a function, or of the partial file."""
    return replace(read_shape(value), line=line, file="new rows")


def function_writer(name: str) -> Writer:
    """Return the writer that `file.py:function` names.

    The function gets a row as an object, `{"prompt": [...], "completion": [...]}`, and returns a
    list of such objects, in any shape that a data file may have.

    Raises:
        ConfigError: The file is missing or cannot be imported, or has no such function.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(f"--with {name}: expected FILE.py:FUNCTION of a file that exists")
    try:
        module = import_file(path)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"--with {name}: the file cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"--with {name}: the file has no function {attribute!r}")

    def write(row: Row) -> list[Row]:
        try:
            return [_row(value, row.line) for value in function(_columns(row))]
        except RowProblem as problem:
            raise DataError(f"--with {name}: row {row.line}: {problem}") from None
        except Exception as error:
            raise DataError(
                f"--with {name}: row {row.line}: {type(error).__name__}: {error}"
            ) from error

    return write


@contextmanager
def endpoint_writer(endpoint: Endpoint, copies: int = 1) -> Iterator[Writer]:
    """Return a writer that asks a model to rewrite the last message of the user."""
    from tuneline.core.openai_client import complete, first_choice, openai_client

    options = {"model": endpoint.model, "temperature": 1.0}

    def write(row: Row) -> list[Row]:
        asked = _asked(row)
        if asked is None:
            return []
        before, message, after = row.prompt[:asked], row.prompt[asked], row.prompt[asked + 1 :]
        messages: list[Any] = [
            {"role": "system", "content": REQUEST},
            {"role": "user", "content": content_of(message)},
        ]
        texts = {plain_text(content_of(message)): ""}
        for _ in range(copies):
            choice = first_choice(complete(client, options, messages), endpoint)
            if choice.finish_reason != "length":  # a cut text asks another question
                text = bare_answer(text_of(choice.message.content))
                texts.setdefault(plain_text(text), text)
        return [
            replace(row, prompt=(*before, {**message, "content": text}, *after))
            for text in texts.values()
            if text
        ]

    with openai_client(
        endpoint, timeout_s=TIMEOUT_S, max_retries=MAX_RETRIES, extra="train"
    ) as client:
        yield write


def _asked(row: Row) -> int | None:
    """Return the place of the last message of the user; None if there is none."""
    places = [index for index, message in enumerate(row.prompt) if message["role"] == "user"]
    return places[-1] if places else None


def writer_name(function: str | None, endpoint: Endpoint | None, copies: int) -> str:
    """Return the origin of the new rows: the function with its file's digest, or the model."""
    if function is not None:
        text = Path(function.rpartition(":")[0]).read_text(encoding="utf-8")
        digest = canonical_digest(text).rpartition(":")[2][:8]
        return f"{function.rpartition('/')[2]} {digest}"
    assert endpoint is not None  # noqa: S101 (the command gives one of the two)
    return f"{endpoint.model} copies {copies}"
