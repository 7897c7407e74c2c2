"""A lock ends with the process that took it, whatever that process has forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tuneline.core.lock import locked_file


def _is_free(path: Path) -> bool:
    try:
        with locked_file(path):
            return True
    except BlockingIOError:
        return False


def test_a_lock_that_is_held_is_not_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked_file(path):
        assert not _is_free(path)
    assert _is_free(path)


def test_an_error_in_the_block_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(KeyError), locked_file(path):
        raise KeyError
    assert _is_free(path)


LOCK_AND_FORK = """
import os, pathlib, signal, sys, time
from tuneline.core.lock import locked_file
with locked_file(pathlib.Path(sys.argv[1])):
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    print(worker, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_forked_process_does_not_hold_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    # A process of its own: libraries of other tests may have threads that a fork ends badly.
    command = [sys.executable, "-c", LOCK_AND_FORK, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert parent.wait() == -signal.SIGKILL
        try:
            # A busy machine may not have run the worker's first instruction yet.
            deadline_s = time.monotonic() + 20
            while not _is_free(path) and time.monotonic() < deadline_s:
                time.sleep(0.01)
            os.kill(worker, 0)  # the worker lives
            assert _is_free(path)
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_fork_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked_file(path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert not _is_free(path)
