"""A lock ends with the process that took it, whatever that process has forked."""

from __future__ import annotations

import os
import signal
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


def test_a_forked_process_does_not_hold_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    path, pids = tmp_path / "lock", tmp_path / "pids"
    parent = os.fork()
    if parent == 0:
        with locked_file(path):
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            pids.write_text(str(worker))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    worker = int(pids.read_text())
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
