"""The compile cache of a server: a folder per key, checked against its record before it is used.

A kernel is code. The folder belongs to the user and is closed to others, and `record.json` has the
digest of every file. A folder that differs from its record is emptied, with a warning, and vLLM
compiles again. A cache is only a saving: no problem with it stops a server.

    ~/.cache/tuneline/kernels/KEY/
      record.json    the key's parts, and the digest of every file below `files`
      lock           shared by the servers that use the folder
      checked        shared by those of them that may read the kernels
      files/         vllm, torchinductor, triton: where vLLM and its compilers write
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serving.kernels.key import cache_name
from serving.scratch import new_scratch
from tuneline.core.config import StrictModel
from tuneline.core.files import FileEntry, file_sha256, payload_files, relative_name
from tuneline.core.progress import logger

# The variables by which vLLM, TorchInductor and Triton find their folders.
VARIABLES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
}
NEEDED_BYTES = 64 * 2**20
"""Room that a cache must have for its kernels."""
MOST_KEPT = 8
"""Caches of a user; the caches that were not used for the longest time are removed."""


class Record(StrictModel):
    """The content of `record.json`."""

    key: dict[str, Any]
    files: list[FileEntry]


class CompileCache:
    """The cache of one server, from its start to its end. A class, since it holds the lock."""

    def __init__(self, key: dict[str, Any], folder: Path, lock: int | None, is_kept: bool) -> None:
        self.key = key
        self.folder = folder
        self.is_kept = is_kept
        """False: the folder is temporary and ends with the server."""
        self.is_warm = False
        """Whether the folder had kernels when the server started; known after `check`."""
        self._lock = lock
        self._checked: int | None = None
        self._digests: dict[tuple[str, int, int], str] = {}
        """By path, size and modification time; a file of 150 MB is read once a start."""

    @property
    def files(self) -> Path:
        return self.folder / "files"

    def env(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the variables for the server. A folder that the user has set stays."""
        return {
            name: str(self.files / part)
            for name, part in VARIABLES.items()
            if not environ.get(name)
        }

    def check(self, fill: Callable[[], None] | None = None) -> None:
        """Compare every file with the record, and empty a folder that differs from it.

        Files that the record does not list are removed: a server that was killed may have left them
        half-written. Of servers that start together, the first one checks, and the others wait for
        it. A folder that another server uses was checked by that server.

        Args:
            fill: Called if the folder is empty and no other server uses it.
        """
        try:
            self._check_alone(fill)
        except OSError as error:
            logger.warning("%s: the compile cache cannot be locked: %s", self.folder, error)
        self.is_warm = any(True for _ in payload_files(self.files))

    def _check_alone(self, fill: Callable[[], None] | None) -> None:
        """Check the folder while no other server checks it or reads it.

        The lock of the folder lets one server at a time come here, and a killed server leaves it.
        """
        turn = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if self._checked is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._checked = os.open(self.folder / "checked", flags, 0o600)
            if _is_only_user(self._checked):
                try:
                    self._remove_what_differs()
                except OSError as error:
                    logger.warning(
                        "%s: the compile cache cannot be checked: %s; it is emptied and vLLM "
                        "compiles again", self.folder, error,
                    )  # fmt: skip
                    shutil.rmtree(self.files)
                    self.files.mkdir()
                if fill is not None and not any(True for _ in payload_files(self.files)):
                    fill()
        finally:
            if self._checked is not None:
                fcntl.flock(self._checked, fcntl.LOCK_SH)
            os.close(turn)

    def record(self) -> None:
        """Write the digest of every file, so that the next server can check them."""
        if not self.is_kept:
            return
        try:
            text = Record(key=self.key, files=self.entries()).model_dump_json(indent=1)
            draft = self.folder / f"record.{os.getpid()}.partial"
            draft.write_text(text, encoding="utf-8")
            draft.replace(self.folder / "record.json")
        except OSError as error:
            logger.warning("%s: the compile cache cannot be kept: %s", self.folder, error)

    def entries(self) -> list[FileEntry]:
        """Return every file with its digest, except for locks and drafts."""
        found = []
        for file in payload_files(self.files):
            name = relative_name(file, self.files)
            if file.is_symlink() or name.endswith((".lock", ".tmp")):
                continue
            with contextlib.suppress(FileNotFoundError):  # a draft that has its own name by now
                size = file.stat().st_size
                found.append(FileEntry(path=name, size_bytes=size, sha256=self._sha256(file)))
        return found

    def close(self) -> None:
        """Let other servers change the folder; called again it does nothing."""
        if self._lock is None:
            return
        if not self.is_kept:
            shutil.rmtree(self.folder, ignore_errors=True)
        for lock in (self._checked, self._lock):
            if lock is not None:
                os.close(lock)
        self._checked = self._lock = None

    def _remove_what_differs(self) -> None:
        listed = {entry.path: entry.sha256 for entry in self._recorded_files()}
        changed = []
        for path in self.files.rglob("*"):
            if path.is_symlink():
                path.unlink()
        for file in payload_files(self.files):
            name = relative_name(file, self.files)
            if name not in listed:
                file.unlink()
            elif self._sha256(file) != listed[name]:
                changed.append(name)
        if changed:
            (self.folder / "record.json").unlink()
            shutil.rmtree(self.files)
            self.files.mkdir()
            logger.warning(
                "%s: %d files differ from record.json (%s); the compile cache is emptied and vLLM "
                "compiles again", self.folder, len(changed), changed[0],
            )  # fmt: skip

    def _recorded_files(self) -> list[FileEntry]:
        try:
            record = Record.model_validate_json((self.folder / "record.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return []
        return record.files if record.key == self.key else []

    def _sha256(self, file: Path) -> str:
        status = file.stat()
        at = (str(file), status.st_size, status.st_mtime_ns)
        if at not in self._digests:
            self._digests[at] = file_sha256(file)
        return self._digests[at]


def open_cache(key: dict[str, Any], root: Path | None = None) -> CompileCache:
    """Return the cache of a key, without a look at its files.

    A folder that cannot be written, or that has no room, gives way to a temporary folder.
    """
    try:
        root = root or Path.home() / ".cache" / "tuneline" / "kernels"
        folder = root / cache_name(key)
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o022:
            raise PermissionError(0, "other users may write to it", str(folder))
        (folder / "files").mkdir(exist_ok=True)
        _require_room(folder)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(folder)
        _remove_old(root, folder)
    except (OSError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        logger.warning(
            "the compile cache below %s cannot be used: %s; vLLM compiles for this start only",
            root or "~/.cache/tuneline", reason,
        )  # fmt: skip
        return temporary_cache(key)
    return CompileCache(key, folder, lock, is_kept=True)


def temporary_cache(key: dict[str, Any]) -> CompileCache:
    """Return a cache that ends with its server."""
    scratch = new_scratch()
    (scratch.path / "files").mkdir()
    return CompileCache(key, scratch.path, scratch.lock, is_kept=False)


def _is_only_user(lock: int) -> bool:
    """Take the lock for this process only; if another server has it, lose the lock: False."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _require_room(folder: Path) -> None:
    """Check that the file system, and the user's quota, have room for kernels.

    Raises:
        OSError: They do not.
    """
    probe = folder / f"room.{os.getpid()}"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        probe.unlink()  # a process that is killed here leaves no room taken
        os.posix_fallocate(descriptor, 0, NEEDED_BYTES)
    finally:
        os.close(descriptor)


def _remove_old(root: Path, kept: Path) -> None:
    """Remove the caches that were not used for the longest time, unless a server uses them."""
    folders = sorted(
        (folder for folder in root.iterdir() if folder.is_dir() and folder != kept),
        key=lambda folder: folder.stat().st_mtime,
    )
    for folder in folders[: max(len(folders) - MOST_KEPT + 1, 0)]:
        with contextlib.suppress(OSError):
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
            try:
                if _is_only_user(lock):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
