"""A baked compile cache: read-only, checked while it is copied, and never a reason to stop."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving.config import ServingConfig
from serving.kernels import command
from serving.kernels.bake import bake_cache, fill_cache
from serving.kernels.cache import CompileCache, open_cache
from tuneline.core.artifact import open_artifact, verify_artifact
from tuneline.core.errors import ArtifactError
from tuneline.models.source import ModelSource

KEY = {"vllm": "0.32.0", "flags": ["--dtype=float32"]}
KERNEL = "torchinductor/ab/kernel.so"


def empty(root: Path, **key: str) -> CompileCache:
    cache = open_cache({**KEY, **key}, root)
    cache.check()
    return cache


@pytest.fixture
def baked(tmp_path: Path) -> Path:
    cache = empty(tmp_path / "made")
    for name in (KERNEL, "torchinductor/precompiled_headers/big.gch", "vllm/info.json"):
        path = cache.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    out = tmp_path / "baked"
    bake_cache(cache, out, [])
    cache.close()
    for path in out.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return out


def test_a_baked_cache_is_an_artifact(baked: Path) -> None:
    artifact = open_artifact(baked, kind="compile-cache")
    verify_artifact(artifact)
    assert [entry.path for entry in artifact.manifest.files] == [KERNEL, "vllm/info.json"]
    assert artifact.manifest.config == {"key": KEY}


def test_a_baked_cache_warms_a_new_machine(baked: Path, tmp_path: Path) -> None:
    cache = empty(tmp_path / "new")
    cache.check(lambda: fill_cache(cache, baked))
    assert cache.is_warm
    assert (cache.files / KERNEL).read_bytes() == KERNEL.encode()
    cache.close()
    again = empty(tmp_path / "new")
    assert again.is_warm, "the copy is recorded"
    again.close()


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("byte", "kernel.so: differs from manifest.json"),
        ("missing", "info.json: expected 14 bytes, found nothing"),
        ("no manifest", "has no manifest.json"),
        ("outside", "names the file ../outside.so; expected a file below it"),
    ],
)
def test_a_baked_cache_that_lies_is_not_used(
    baked: Path, tmp_path: Path, lie: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    for path in [baked, *baked.rglob("*")]:
        path.chmod(0o755)
    if lie == "byte":
        (baked / KERNEL).write_bytes(KERNEL.upper().encode())
    elif lie == "missing":
        (baked / "vllm/info.json").unlink()
    elif lie == "no manifest":
        (baked / "manifest.json").unlink()
    else:
        manifest = json.loads((baked / "manifest.json").read_text())
        manifest["files"][0]["path"] = "../outside.so"
        (baked / "manifest.json").write_text(json.dumps(manifest))
        (tmp_path / "outside.so").write_bytes(KERNEL.encode())
    cache = empty(tmp_path / "new")
    with caplog.at_level(logging.WARNING, "tuneline"):
        cache.check(lambda: fill_cache(cache, baked))
    assert message in caplog.text
    assert "the baked compile cache is not used" in caplog.text
    assert not cache.is_warm
    assert cache.entries() == []
    assert not (cache.folder / "outside.so").exists()
    cache.close()


def test_a_cache_of_another_server_is_not_used(
    baked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = empty(tmp_path / "new", vllm="0.33.0")
    with caplog.at_level(logging.WARNING, "tuneline"):
        cache.check(lambda: fill_cache(cache, baked))
    assert "is baked for another server (vllm)" in caplog.text
    assert not cache.is_warm
    cache.close()


def test_a_server_of_vectors_is_baked_without_a_request_for_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = empty(tmp_path / "made")
    (cache.files / "kernel.so").write_bytes(b"\x7fELF")

    @contextmanager
    def no_server(*_: object, **__: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(cache=cache)  # a request would need its endpoint

    monkeypatch.setattr(command, "running_server", no_server)
    baked = command.bake_kernels(
        ServingConfig(routes=["embeddings"]),
        ModelSource(path=tmp_path, digest="sha256:0", kind="base-model", name="m"),
        name="m", log_path=tmp_path / "log", out=tmp_path / "baked",
    )  # fmt: skip
    assert [entry.path for entry in baked.manifest.files] == ["kernel.so"]
    cache.close()


def test_an_empty_cache_is_not_baked(tmp_path: Path) -> None:
    cache = empty(tmp_path / "made")
    with pytest.raises(ArtifactError, match="has no compiled kernels to bake"):
        bake_cache(cache, tmp_path / "baked", [])
    cache.close()
