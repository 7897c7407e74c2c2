"""Logs and progress on stderr: a live bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

logger = logging.getLogger("tuneline")

PLAIN_INTERVAL_S = 10.0
SHOWN_BYTES = 2**30
"""A read of fewer bytes takes at most some seconds."""

Advance = Callable[..., None]
"""`advance(done, note="")`, where `done` is the total number of finished units."""


def set_up_logging(verbose: bool = False) -> None:
    """Send the logger's messages to stderr, without a prefix."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def log_in_handler(message: str) -> None:
    """Log a message from a signal's handler.

    The signal may come inside a write to stderr, which cannot be entered twice: the logger raises,
    and that error would take the place of what the handler raises.
    """
    try:
        logger.warning(message)
    except RuntimeError:
        os.write(sys.stderr.fileno(), f"{message}\n".encode())


@contextmanager
def progress(label: str, total: float | None = None, unit: str = "") -> Iterator[Advance]:
    """Show the progress of a long step: a bar with the time left, or log lines without a terminal.

    Log lines appear every ten seconds, so that the log of an unattended run shows how far it was.
    """
    if sys.stderr.isatty():
        with _live(label, total, unit) as advance:
            yield advance
    else:
        yield _plain(label, total, unit)


@contextmanager
def reading(label: str, size_bytes: int) -> Iterator[Advance]:
    """Show the progress of a long read: `advance(done_bytes)`. A short one shows nothing.

    A thread shows nothing either, because the main thread may show a bar of its own.
    """
    if size_bytes < SHOWN_BYTES or threading.current_thread() is not threading.main_thread():
        yield lambda _done_bytes: None
        return
    with progress(label, round(size_bytes / 2**20), "MiB") as advance:
        yield lambda done_bytes: advance(round(done_bytes / 2**20))


@contextmanager
def _live(label: str, total: float | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    before = sys.stderr
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
        ExitStack() as stack,
    ):
        # The bar puts a stream in place of stderr that writes above it; messages go there too.
        _move_messages(before, sys.stderr)
        stack.callback(_move_messages, sys.stderr, before)
        task = bar.add_task(label, total=total, count="", note="")

        def advance(done: float, note: str = "") -> None:
            bar.update(task, completed=done, count=_count(done, total, unit), note=note)

        yield advance


def _move_messages(old: TextIO, new: TextIO) -> None:
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)


def _plain(label: str, total: float | None, unit: str) -> Advance:
    last_s = time.monotonic()

    def advance(done: float, note: str = "") -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= PLAIN_INTERVAL_S:
            last_s = now_s
            logger.info("  %s: %s %s", label, _count(done, total, unit), note)

    return advance


def _count(done: float, total: float | None, unit: str) -> str:
    count = f"{done:g}" if total is None else f"{done:g}/{total:g}"
    return f"{count} {unit}".rstrip()
