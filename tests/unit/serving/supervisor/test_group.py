"""The end of a process group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.supervisor.group import group_members, kill_group

SERVER = """
import os, threading, time
from multiprocessing.shared_memory import SharedMemory
from serving.supervisor.group import end_own_group

if os.fork() == 0:
    print(SharedMemory(create=True, size=1024).name, flush=True)
    time.sleep(60)
os.read(0, 1)
end_own_group()
"""


@pytest.mark.parametrize("by_itself", [False, True])
def test_no_process_and_no_shared_memory_is_left(by_itself: bool) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    memory = Path("/dev/shm") / server.stdout.readline().decode().strip()  # noqa: S108
    assert memory.exists()
    if not by_itself:
        kill_group(server.pid)
    server.stdin.close()
    server.wait(10)
    kill_group(server.pid)
    server.stdout.close()
    assert not memory.exists()
    assert group_members(server.pid) == []
