"""A pod's log has one stream, and its verdict is the termination message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuneline.commands.printing import MESSAGE_SIZE_BYTES, Output, write_message
from tuneline.core.artifact import new_artifact


def tuneline(*arguments: str | Path, message: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuneline", *map(str, arguments)],
        env={**os.environ, "TUNELINE_POD_MESSAGE": str(message)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_an_error_comes_after_the_document_in_one_stream(tmp_path: Path) -> None:
    done = tuneline("verify", tmp_path, "--json", message=tmp_path / "message")
    assert done.returncode == 3
    assert done.stderr == ""
    document, found, rest = done.stdout.partition("\n}\n")
    assert found and json.loads(document + found)["error"]["exit_code"] == 3
    assert rest.startswith("error: ")
    assert (tmp_path / "message").read_text().startswith(f"error: {tmp_path}: has no manifest.json")


def test_a_result_is_the_message_too(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "x", "dataset", config={}) as draft:
        (draft.dir / "a.txt").write_text("a")
    done = tuneline("verify", tmp_path / "x", "--json", message=tmp_path / "message")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"x": done.stdout.split('"')[3]}
    assert (tmp_path / "message").read_text().startswith("ok  x: 1 files, sha256:")


def test_a_long_message_keeps_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELINE_POD_MESSAGE", str(tmp_path / "message"))
    write_message(Output(lines=tuple(f"line {n} é" for n in range(1000)), error="FAIL"))
    kept = (tmp_path / "message").read_bytes()
    assert MESSAGE_SIZE_BYTES - 2 <= len(kept) <= MESSAGE_SIZE_BYTES
    assert kept.decode().endswith("line 999 é\nerror: FAIL")


def test_no_message_without_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNELINE_POD_MESSAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    write_message(Output(error="FAIL"))
    assert list(tmp_path.iterdir()) == []
