"""An export that is killed leaves no process behind that writes into the folder of the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TINY_BASE = Path(__file__).parents[4] / "examples" / "tiny-base"

EXPORT = """
import sys
from pathlib import Path
from export.graphs.to_onnx import run_builder
from tuneline.models.source import resolve_model
run_builder(resolve_model(sys.argv[1]), Path(sys.argv[2]), "float32")
"""


def test_the_builder_ends_with_the_export_that_started_it(tmp_path: Path) -> None:
    export = subprocess.Popen([sys.executable, "-c", EXPORT, str(TINY_BASE), str(tmp_path / "out")])
    deadline_s = time.monotonic() + 120
    while not (builders := _children(export.pid)) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    (builder,) = builders
    # Its program has asked the kernel by the time that it loads the libraries.
    while "torch" not in _maps(builder) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    os.kill(export.pid, signal.SIGKILL)
    export.wait()
    deadline_s = time.monotonic() + 10
    while _runs(builder) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not _runs(builder)
    assert not list(tmp_path.glob("out/*"))


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def _maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
