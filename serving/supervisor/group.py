"""The process group of the server: every process that vLLM starts is in it.

Python's resource tracker is one of them. It ends when the processes that it serves are gone, and
removes the shared memory that they have left: up to 160 MiB each.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from serving.middleware.engine import is_resource_tracker

# How long processes that were killed may take to be gone; a device can hold one for a while.
GONE_TIMEOUT_S = 10.0
TRACKERS_S = 2.0
"""How long resource trackers may take to remove what is left."""


def kill_group(group: int) -> None:
    """Send SIGKILL to every process of the group and wait until none runs."""
    started_s = time.monotonic()
    while members := group_members(group):
        after_s = time.monotonic() - started_s
        if after_s > GONE_TIMEOUT_S:
            return
        kill_members(members, spares_trackers=after_s < TRACKERS_S)
        time.sleep(0.02)


def kill_members(members: list[int], *, spares_trackers: bool) -> None:
    """Send SIGKILL to processes; a resource tracker then ends by itself."""
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            if not (spares_trackers and is_resource_tracker(member)):
                os.kill(member, signal.SIGKILL)


def end_own_group() -> None:
    """Send SIGKILL to every process of this process's group, and last to itself."""
    while others := [
        member
        for member in group_members(os.getpgrp())
        if member != os.getpid() and not is_resource_tracker(member)
    ]:
        kill_members(others, spares_trackers=True)
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def group_members(group: int) -> list[int]:
    """Return the processes of a group that run; a zombie only waits to be reaped."""
    members = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            stat = (directory / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # Behind the name in parentheses: state, parent, process group (proc_pid_stat(5)).
        state, _, process_group = stat.rpartition(")")[2].split()[:3]
        if int(process_group) == group and state not in "ZX":
            members.append(int(directory.name))
    return members
