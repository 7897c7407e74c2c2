"""Folders that one worker makes and all workers read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneline.core.lock import locked_file

WORKER = "TUNELINE_TEST_WORKER"
"""The environment variable with the name of the worker in which a test runs."""


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` has filled, in this worker or in another worker of this run."""
    root = factory.getbasetemp()
    if WORKER in os.environ:
        root = root.parent
    return made_once_in(root / "shared", name, make)


def made_once_in(parent: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder below a folder of all workers, which `make` has filled in one of them.

    A worker that finds another one at work waits for it. If `make` fails, the next worker that asks
    tries again, so that each test that needs the folder shows the error.
    """
    folder, done = parent / name, parent / f"{name}.done"
    parent.mkdir(exist_ok=True)
    with locked_file(folder.with_name(f"{name}.lock"), wait=True):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
