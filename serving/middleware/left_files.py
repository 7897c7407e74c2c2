"""The temporary files of killed servers in a pod, whose /tmp and /dev/shm outlive the container.

A kill for lack of memory ends all processes of a container at once, and nothing removes vLLM's
shared memory, hundreds of megabytes. The next container of the pod starts with the same volumes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from serving.middleware.startup import process_age_s

FOLDERS = (Path("/tmp"), Path("/dev/shm"))  # noqa: S108 (volumes of the pod)
TOLERANCE_S = 1.0
"""The kernel counts the start of a process in hundredths of a second."""


def remove_left_files(folders: Sequence[Path] = FOLDERS) -> None:
    """Remove this user's temporary files that are older than this process, if it is the first
    process of a container: all their owners are gone then.

    They are sockets, folders of `tempfile`, and all files in `/dev/shm`.
    """
    if os.getpid() != 1:
        return
    started_s = time.time() - process_age_s() - TOLERANCE_S
    for folder in folders:
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_uid == os.geteuid() and status.st_mtime < started_s:
                        _remove(entry, status.st_mode, is_memory=folder.name == "shm")


def _remove(entry: os.DirEntry[str], mode: int, *, is_memory: bool) -> None:
    if stat.S_ISSOCK(mode) or (is_memory and stat.S_ISREG(mode)):
        os.unlink(entry.path)  # noqa: PTH108 (the entry has a text)
    elif stat.S_ISDIR(mode) and entry.name.startswith("tmp"):
        shutil.rmtree(entry.path, ignore_errors=True)
