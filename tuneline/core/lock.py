"""File locks that end with the process that took them.

A lock of flock(2) belongs to the open file, which a forked process shares: the data workers of a
killed training would hold the lock of its artifact until they notice, some seconds later.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HELD: set[int] = set()


@contextmanager
def locked_file(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file, for this process only; the file is made if it is not there.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is false.
        OSError: The file cannot be written.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        _HELD.add(file.fileno())
        try:
            yield
        finally:
            _HELD.discard(file.fileno())
            fcntl.flock(file, fcntl.LOCK_UN)


def _leave_locks() -> None:
    """Let go of the parent's locks in a forked process; the numbers of the files stay taken."""
    if not _HELD:
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in _HELD:
        os.dup2(nothing, number)
    os.close(nothing)
    _HELD.clear()


os.register_at_fork(after_in_child=_leave_locks)
