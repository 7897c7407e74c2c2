"""A model folder's digest."""

import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from tuneline.models import source
from tuneline.models.source import folder_digest


def test_a_folder_s_digest_is_over_names_and_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    folder.mkdir()
    # Longer than what is read, and dropped from the page cache, at once.
    contents = {"config.json": b"{}", "model.safetensors": os.urandom(37 * 2**20 + 5)}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle is never read")
    entries = [[name, hashlib.sha256(data).hexdigest()] for name, data in contents.items()]
    text = json.dumps(entries, separators=(",", ":"))
    expected = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert folder_digest(folder) == expected
    assert folder_digest(folder) == expected, "as it is remembered"


def test_other_bytes_with_the_same_size_and_time_are_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives and copies may give every file of every model one modification time."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(source, "REMEMBERED_BYTES", 1)
    (tmp_path / "config.json").write_text("{}")
    weights, digests = tmp_path / "model.safetensors", set()
    for data in (b"a", b"b"):
        weights.write_bytes(data)
        os.utime(weights, (1, 1))
        digests |= {folder_digest(tmp_path), folder_digest(tmp_path)}
    assert len(digests) == 2


def test_a_digest_covers_named_templates_and_no_second_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = folder_digest(tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"the weights again")
    assert folder_digest(tmp_path) == before
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert folder_digest(tmp_path) != before
    before = folder_digest(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    assert folder_digest(tmp_path) != before


@pytest.mark.parametrize(
    ("name", "is_taken"),
    [
        ("model-00001-of-00002.safetensors", True), ("tekken.json", True), ("LICENSE", True),
        ("NOTICE", True), ("Notice.txt", True), ("USE_POLICY.md", True),
        ("additional_chat_templates/tool_use.jinja", True), ("original/config.json", False),
        ("consolidated-00001-of-00002.safetensors", False), ("pytorch_model.bin", False),
        ("original/model.safetensors", False), ("modeling.py", False),
        ("1_Pooling/config.json", True), ("2_Dense/model.safetensors", True),
        ("2_Dense/pytorch_model.bin", False), ("onnx/config.json", False),
        ("4bit/model.safetensors", False),
    ],
)  # fmt: skip
def test_only_the_files_of_the_model_are_downloaded(name: str, is_taken: bool) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked = filter_repo_objects([name], **source.DOWNLOADED)
    assert bool(list(asked)) is is_taken


@pytest.mark.parametrize("cache", [b"[]", b"\xff\xfe", None])
def test_a_digest_needs_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bytes | None
) -> None:
    """The file may be damaged, and the user of a container may have no home."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(source, "REMEMBERED_BYTES", 1)
    if cache is None:
        monkeypatch.setattr(Path, "home", home)
    else:
        (tmp_path / ".cache" / "tuneline").mkdir(parents=True)
        (tmp_path / ".cache" / "tuneline" / "sha256.json").write_bytes(cache)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    text = json.dumps([["model.safetensors", hashlib.sha256(b"weights").hexdigest()]])
    expected = hashlib.sha256(text.replace(", ", ",").encode()).hexdigest()
    assert folder_digest(tmp_path) == f"sha256:{expected}"


def test_processes_that_remember_at_once_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(source, "REMEMBERED_BYTES", 1)
    folders = [tmp_path / f"model-{number}" for number in range(24)]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"name": folder.name}))
    with multiprocessing.get_context("fork").Pool(8) as pool:
        digests = pool.map(folder_digest, folders, chunksize=1)
        # The end of the block would send SIGTERM, and a process that waits for its next task may
        # have a handler of this process.
        pool.close()
        pool.join()
    assert len(set(digests)) == 24
    cache = json.loads((tmp_path / "home/.cache/tuneline/sha256.json").read_text())
    remembered = {key.partition(":")[0] for key in cache}
    assert remembered == {str(folder / "config.json") for folder in folders}


def test_the_cache_has_large_files_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache = tmp_path / "home" / ".cache" / "tuneline" / "sha256.json"
    monkeypatch.setattr(source, "REMEMBERED_BYTES", 1000)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    folder_digest(first)
    assert not cache.exists()
    for folder in (first, second):
        (folder / "model.safetensors").write_bytes(os.urandom(1000))
    folder_digest(first)
    assert [key.partition(":")[0] for key in json.loads(cache.read_text())] == [
        str(first / "model.safetensors")
    ]
    (first / "model.safetensors").unlink()
    folder_digest(second)
    assert [key.partition(":")[0] for key in json.loads(cache.read_text())] == [
        str(second / "model.safetensors")
    ]
