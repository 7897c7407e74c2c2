"""Folders for temporary files: who removes them, and which."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serving.scratch import LOCK, PREFIX, new_scratch

HOLDER = """
import sys, time
from pathlib import Path
from serving.scratch import new_scratch
print(new_scratch(Path(sys.argv[1])).path, flush=True)
time.sleep(60)
"""


def test_the_folder_of_a_killed_process_goes_and_others_stay(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    held = Path(holder.stdout.readline().strip())
    mine = tmp_path / f"{PREFIX}examples"
    mine.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    new_scratch(tmp_path).close()
    assert held.is_dir(), "its process lives"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    made = new_scratch(tmp_path)
    assert not held.exists()
    assert mine.is_dir() and (elsewhere / LOCK).exists(), "no lock of ours, or a link"
    assert made.path.stat().st_mode & 0o777 == 0o700
    made.close()
    assert not made.path.exists()


def test_a_socket_fits_below_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    made = new_scratch()
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(made.path / ("u" * 36)))
    finally:
        made.close()
