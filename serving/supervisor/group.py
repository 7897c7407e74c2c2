"""The process group of the server: every process that vLLM starts is in it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

# How long processes that were killed may take to be gone; a device can hold one for a while.
GONE_TIMEOUT_S = 10.0


def kill_group(group: int) -> None:
    """Send SIGKILL to every process of the group and wait until none runs."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline_s = time.monotonic() + GONE_TIMEOUT_S
    while group_members(group) and time.monotonic() < deadline_s:
        time.sleep(0.02)


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
