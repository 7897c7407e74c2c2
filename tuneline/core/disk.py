"""Writing to the disk: a file as a whole, room for a directory, and errors that name the path."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from functools import partial
from pathlib import Path

from tuneline.core.errors import ArtifactError, DiskFullError
from tuneline.core.files import nearest_folder


def replace_file(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write a text file as a whole. A reader, or a crash, finds the earlier text or the new text.

    Args:
        mode: The permissions of the file, before the umask.

    Raises:
        DiskFullError, ArtifactError: The file cannot be written; the earlier file stays.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(draft, "x", encoding="utf-8", opener=partial(os.open, mode=mode)) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def sync_path(path: Path) -> None:
    """Write a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> DiskFullError | ArtifactError:
    """Return the error for a file or a directory that cannot be created."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path)
    return ArtifactError(
        f"{path}: cannot be written: {error.strerror}",
        hint="Choose a directory with write permission.",
    )


def disk_full(path: Path) -> DiskFullError:
    """Return the error for a disk that filled up while `path` was written."""
    return DiskFullError(
        f"{path}: the disk is full; the unfinished files were removed",
        hint="Free some space and run the same command again; finished stages are kept.",
    )


def require_disk_space(directory: Path, size_bytes: int, *, purpose: str = "") -> None:
    """Check that a directory's disk has `size_bytes` free; the directory need not exist yet.

    Args:
        purpose: The files that need the space, for the message.

    Raises:
        DiskFullError: The disk has less free space.
    """
    free_bytes = shutil.disk_usage(nearest_folder(directory)).free
    if free_bytes < size_bytes:
        raise DiskFullError(
            f"{directory}: {free_bytes / 2**20:,.0f} MiB are free; expected "
            f"{size_bytes / 2**20:,.0f} MiB" + (f" for {purpose}" if purpose else ""),
            hint="Free some space, or choose a directory on another disk.",
        )
