"""A merge that is killed goes on where it stopped, and trusts nothing that it has not hashed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import export.weights.writer
from benchmarks.merge import Shape, write_adapter, write_model
from export.config import MergeConfig
from export.merge.merge import merge
from tests.commands import tuneline_forked, tuneline_here
from tests.integration.export import families
from tests.integration.export.merging import edit_tensors, killed
from tuneline.core.artifact import partial_dir, verify_artifact
from tuneline.models.source import ModelSource, resolve_model

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A base in several shards, an adapter, and the digest of a merge that nothing disturbed."""
    folder = tmp_path_factory.mktemp("made")
    base = families.make_base(folder / "base", "llama", torch.bfloat16, max_shard_size="100KB")
    assert len(list(base.glob("*.safetensors"))) >= 2
    adapter = families.make_adapter(folder / "adapter", base)
    whole = merge(MergeConfig(), resolve_model(str(base)), adapter, folder / "whole")
    assert whole.manifest.metrics["resumed_bytes"] == 0
    return base, adapter, whole.digest


@pytest.mark.parametrize(("kept_bytes", "is_dropped"), [(2**40, False), (0, True)])
def test_only_bytes_on_the_disk_are_dropped_from_the_cache(
    kept_bytes: int,
    is_dropped: bool,
    made: tuple[Path, Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, adapter, digest = made
    advised: list[Path] = []

    def advise(descriptor: int, *rest: Any) -> None:
        advised.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        posix_fadvise(descriptor, *rest)

    posix_fadvise = os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(export.weights.writer, "CHECKPOINT_BYTES", 1)
    monkeypatch.setattr(export.weights.writer, "KEPT_BYTES", kept_bytes)
    out = merge(MergeConfig(), resolve_model(str(base)), adapter, tmp_path / "out")
    assert out.digest == digest
    verify_artifact(out)
    assert any(partial_dir(out.path) in path.parents for path in advised) is is_dropped


@pytest.mark.parametrize(
    ("name", "at", "resumes"),
    [("compute_block", 1, False), ("note_finished", 1, True), ("compute_block", 14, True)],
)
def test_a_killed_merge_goes_on(
    name: str, at: int, resumes: bool, made: tuple[Path, Path, str], tmp_path: Path
) -> None:
    base, adapter, digest = made
    out = tmp_path / "runs" / "model"
    killed(base, adapter, out, name, at)
    merged = merge(MergeConfig(), resolve_model(str(base)), adapter, out)
    assert (merged.manifest.metrics["resumed_bytes"] > 0) is resumes
    assert merged.digest == digest
    verify_artifact(merged)
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def damage_data(partial: Path) -> None:
    file = min(partial.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def damage_header(partial: Path) -> None:
    file = min(partial.glob("*.safetensors"))
    file.write_bytes(b"\x00" * 16 + file.read_bytes()[16:])


def truncate(partial: Path) -> None:
    for file in partial.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-3])


def forget(partial: Path) -> None:
    for file in partial.glob("*.safetensors"):
        file.unlink()


def garble(partial: Path) -> None:
    with (partial / ".journal.jsonl").open("a") as journal:
        journal.write('{"file": "model-00001-of-00003.safetensors", "outputs": 99, "sha')


@pytest.fixture(scope="module")
def killed_late(made: tuple[Path, Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the partial directory of a merge that is killed after its twelfth tensor."""
    base, adapter, _ = made
    out = tmp_path_factory.mktemp("killed") / "model"
    killed(base, adapter, out, "note_finished", 12)
    return partial_dir(out)


@pytest.mark.parametrize("damage", [damage_data, damage_header, truncate, forget, garble])
def test_files_left_by_a_killed_merge_are_hashed_again(
    damage: Any, made: tuple[Path, Path, str], killed_late: Path, tmp_path: Path
) -> None:
    base, adapter, digest = made
    out = tmp_path / "model"
    shutil.copytree(killed_late, partial_dir(out))
    damage(partial_dir(out))
    merged = merge(MergeConfig(), resolve_model(str(base)), adapter, out)
    assert merged.digest == digest
    verify_artifact(merged)


def test_files_left_by_a_killed_merge_are_used(
    made: tuple[Path, Path, str], killed_late: Path, tmp_path: Path
) -> None:
    """Without damage, so that the damage is what the tests above find."""
    base, adapter, digest = made
    shutil.copytree(killed_late, partial_dir(tmp_path / "model"))
    merged = merge(MergeConfig(), resolve_model(str(base)), adapter, tmp_path / "model")
    assert merged.manifest.metrics["resumed_bytes"] > 0
    assert merged.digest == digest


def test_files_left_by_another_merge_are_not_used(
    made: tuple[Path, Path, str], tmp_path: Path
) -> None:
    base, adapter, digest = made
    other = families.make_adapter(tmp_path / "other", base)
    edit_tensors(other / "adapter_model.safetensors", lambda t: next(iter(t.values())).mul_(2))
    out = tmp_path / "model"
    killed(base, other, out, "note_finished", 12)
    merged = merge(MergeConfig(), resolve_model(str(base)), adapter, out)
    assert merged.manifest.metrics["resumed_bytes"] == 0
    assert merged.digest == digest


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A base of several checkpoints of the merge, an adapter, and the digest of their merge."""
    folder = tmp_path_factory.mktemp("large")
    shape = Shape(16000, 2048, 5632, 3, 16, 16, False)
    base, adapter = write_model(folder / "base", shape), write_adapter(folder / "a", shape)
    source = ModelSource("base", base, "sha256:0", "base-model")
    whole = merge(MergeConfig(), source, adapter, folder / "whole")
    digest = whole.digest
    shutil.rmtree(whole.path)
    return base, adapter, digest


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_the_command_goes_on_after_a_signal(
    sent: signal.Signals,
    large: tuple[Path, Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real command with its real checkpoints, ended from outside in the middle of a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    base, adapter, digest = large
    out = tmp_path / "out"
    command = ["export", "merge", "--base", str(base), "--adapter", str(adapter)]
    command += ["--out", str(out), "--json"]
    process = tuneline_forked(tmp_path / "log", *command)
    journal = partial_dir(out) / ".journal.jsonl"
    while process.is_alive() and not (
        journal.exists() and len(journal.read_text().splitlines()) > 1
    ):
        time.sleep(0.002)
    assert process.is_alive(), (tmp_path / "log").read_text()
    os.kill(process.pid or 0, sent)
    process.join()
    assert process.exitcode == (-sent if sent == signal.SIGKILL else 128 + sent)
    assert not out.exists()
    again = tuneline_here(*command)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["metrics"]["resumed_bytes"] > 64 * 2**20
    assert found["digest"] == digest


def test_ctrl_c_does_not_wait_for_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    """A Hub that takes the connection and never answers."""
    shape = Shape(64, 32, 64, 1, 2, 2, True)
    adapter = write_adapter(tmp_path / "a", shape)
    with socket.create_server(("127.0.0.1", 0)) as hub:
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "tuneline", "export", "merge", "--base", "some/model",
             "--adapter", str(adapter), "--out", str(tmp_path / "out")],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE,
        )  # fmt: skip
        hub.settimeout(60)
        connection, _ = hub.accept()
        time.sleep(4)  # until torch is imported too
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)  # huggingface_hub itself would wait for ever
        connection.close()
    assert process.returncode == 128 + signal.SIGINT
    assert not (tmp_path / "out").exists()
