"""The supervisor checks the model's files while vLLM imports, and vLLM waits for the check."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from serving.supervisor.preparation import CHUNK_BYTES, prepare, read_ahead
from tuneline.core.errors import ArtifactError, TamperedError

ROOT = Path(__file__).parents[4]


def test_the_model_may_be_loaded_after_the_checks(tmp_path: Path) -> None:
    order: list[str] = []
    loaded = threading.Event()

    def let_load() -> None:
        order.append("load")
        loaded.set()

    checks = [lambda: order.append("cache"), lambda: order.append("model")]
    preparation = prepare(checks, tmp_path, let_load)
    assert loaded.wait(10)
    assert order == ["cache", "model", "load"]
    assert preparation.error is None


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (TamperedError("model: differs"), TamperedError, "model: differs"),
        (PermissionError(13, "Permission denied", "a.json"), ArtifactError,
         "a.json: cannot be read: Permission denied"),
    ],
)  # fmt: skip
def test_a_check_that_fails_keeps_the_model_unloaded(
    tmp_path: Path, raised: Exception, expected: type[ArtifactError], message: str
) -> None:
    loaded = threading.Event()

    def check() -> None:
        raise raised

    preparation = prepare([check], tmp_path, loaded.set)
    deadline_s = time.monotonic() + 10
    while preparation.error is None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert isinstance(preparation.error, expected)
    assert preparation.error.exit_code == 3
    assert preparation.error.message == message
    assert not loaded.is_set()


def test_weights_are_read_to_the_end_or_until_the_server_ends(tmp_path: Path) -> None:
    size = CHUNK_BYTES + 17
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(bytes(size))
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(bytes(5))
    (tmp_path / "config.json").write_text("{}")
    ended = threading.Event()
    assert read_ahead(tmp_path, ended) == size + 5
    ended.set()
    assert read_ahead(tmp_path, ended) == 0


def test_weights_beyond_half_of_the_memory_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    monkeypatch.setattr("serving.supervisor.preparation.free_host_bytes", lambda: 1999)
    assert read_ahead(tmp_path, threading.Event()) == 0


# The child of a supervisor, as `serving.supervisor.launch` waits and ends.
CHILD = """
import os, threading
from serving.supervisor.launch import _follow
may_load = threading.Event()
threading.Thread(target=_follow, args=(int(os.environ["FD"]), may_load), daemon=True).start()
print("waits", may_load.wait(0.3), flush=True)
may_load.wait()
print("loads", flush=True)
threading.Event().wait(60)
"""


def test_vllm_waits_for_the_byte_and_ends_with_its_supervisor() -> None:
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], cwd=ROOT, env={**os.environ, "FD": str(read_end)},
        pass_fds=(read_end,), stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as child:  # fmt: skip
        os.close(read_end)
        assert child.stdout is not None
        assert child.stdout.readline() == "waits False\n"
        os.write(write_end, b"1")
        assert child.stdout.readline() == "loads\n"
        assert child.poll() is None
        os.close(write_end)
        assert child.wait(timeout=10) == -9
