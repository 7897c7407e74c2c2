"""A folder for temporary files that does not outlive its process for long.

vLLM leaves sockets, and a killed server leaves more. The process that makes the folder holds a lock
in it and removes the folder at the end. A process that was killed cannot; the next one that makes a
folder removes the folders that nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tuneline.core.disk import cannot_write

PREFIX = "tuneline-serve-"
LOCK = ".in-use-by-tuneline"
"""Only folders with this file are removed: others may have a name like theirs."""
LONGEST_PATH = 64
"""A socket's path has at most 107 bytes (unix(7)), and a name in the folder takes 37 of them."""


@dataclass
class Scratch:
    """A folder, and the lock by which others see that it is in use."""

    path: Path
    lock: int

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def new_scratch(root: Path | None = None) -> Scratch:
    """Return a new folder, closed to other users, and remove the folders of killed processes.

    It is in the folder for temporary files, or in /tmp if that path is too long for sockets.

    Raises:
        ArtifactError, DiskFullError: The folder cannot be made.
    """
    root = root or _temporary_files()
    _remove_left(root)
    try:
        return _make(root)
    except OSError as error:
        raise cannot_write(root, error) from error


def _temporary_files() -> Path:
    root = Path(tempfile.gettempdir())
    if len(os.fsencode(root / f"{PREFIX}12345678")) > LONGEST_PATH:
        return Path("/tmp")  # noqa: S108 (a folder of its own is made in it)
    return root


def _make(root: Path) -> Scratch:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if path.exists():
            return Scratch(path, lock)
        os.close(lock)  # another process came first and took it for a folder that nobody holds


def _remove_left(root: Path) -> None:
    """Remove this user's folders that no process holds."""
    for path in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(lock).st_uid == os.geteuid() and not path.is_symlink():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
