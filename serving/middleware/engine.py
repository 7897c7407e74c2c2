"""The processes of the engine, as one of its front ends sees them.

A single front end has started the engine, and vLLM tells it when the engine ends. Several front
ends are children of the process that has started the engine, and vLLM tells them nothing: their
requests would wait until vLLM ends them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

TITLE = b"::EngineCore"
"""In the name that vLLM gives to the engine's process."""


class Process(Protocol):
    """A process that may end."""

    def is_alive(self) -> bool:
        """Return whether it runs."""


class Sibling:
    """A process that this one has not started. A class, since its descriptor is kept open: another
    process may get the number of one that has ended."""

    def __init__(self, pid: int) -> None:
        """Open the process.

        Raises:
            OSError: There is no such process.
        """
        self._ended = select.poll()
        self._descriptor = os.pidfd_open(pid)
        self._ended.register(self._descriptor, select.POLLIN)

    def is_alive(self) -> bool:
        """Return whether it runs; a process whose parent has not asked for its end does not."""
        return not self._ended.poll(0)


def first_process() -> int:
    """Return the process that has started the engine: the only front end, or the parent of several
    front ends."""
    return os.getpid() if multiprocessing.parent_process() is None else os.getppid()


def engine_processes() -> Sequence[Process]:
    """Return the engine's processes on this machine."""
    if multiprocessing.parent_process() is None:
        return multiprocessing.active_children()
    found = []
    for pid in _engines():
        with contextlib.suppress(OSError):  # the process is gone
            found.append(Sibling(pid))
    return found


def engine_and_workers() -> list[int]:
    """Return the engine's processes and those that they have started; no front end."""
    if multiprocessing.parent_process() is None:
        return descendants(os.getpid())
    return [one for engine in _engines() for one in (*descendants(engine), engine)]


def _engines() -> list[int]:
    """Return the engine's processes, as one of several front ends knows them: by their name."""
    found = []
    for pid in children(first_process()):
        with contextlib.suppress(OSError):  # the process is gone
            if TITLE in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def own_children() -> list[int]:
    """Return the processes that this one has started by multiprocessing."""
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def children(process: int) -> list[int]:
    """Return the processes that all threads of `process` have started."""
    found: list[int] = []
    for threads in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread is gone
            found += [int(child) for child in threads.read_text().split()]
    return found


def descendants(process: int) -> list[int]:
    """Return the processes that `process` has started, and those that they have started."""
    return [one for child in children(process) for one in (*descendants(child), child)]


def is_resource_tracker(process: int) -> bool:
    """Return whether a process is Python's tracker of shared memory."""
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False  # the process is gone
