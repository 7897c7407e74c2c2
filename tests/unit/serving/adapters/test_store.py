"""The list of desired adapters and the copies that vLLM reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from serving.adapters.store import (
    Desired,
    Version,
    lock_state,
    open_version,
    read_state,
    remove_other_versions,
    store_version,
    version_dir,
    write_state,
)
from tests.unit.serving.adapters.made import make_adapter, make_reference
from tuneline.core import files as files_module
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    NotAnArtifactError,
    TamperedError,
    TunelineError,
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    lock_state(folder).close()
    return folder


def store(state: Path, root: Path, digest: str | None = None) -> None:
    store_version(state, root, str(root / "adapter"), str(root / "reference"), digest)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    make_reference(folder / "reference", make_adapter(folder / "adapter"))
    return folder


def desired(digest: str, reference: str, previous: Version | None = None) -> Desired:
    version = Version(digest=digest, reference_digest=reference, added_at="2026", figures={})
    return Desired(current=version, previous=previous)


def test_the_list_is_replaced_as_a_whole(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_state(state) == {}
    first = {"a": desired("sha256:1", "sha256:2")}
    write_state(state, first)
    assert read_state(state) == first

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TunelineError, match="the disk is full"):
            write_state(state, {})
    assert read_state(state) == first
    assert {path.name for path in state.iterdir()} == {".lock", "versions", "adapters.json"}


@pytest.mark.parametrize("text", ["", "[]", '{"a": {}}', "{", '{"a": {"current": 1}}'])
def test_a_broken_list_is_refused(state: Path, text: str) -> None:
    (state / "adapters.json").write_text(text)
    with pytest.raises(ArtifactError, match="is not a list of adapters"):
        read_state(state)


def test_two_servers_do_not_use_one_folder(tmp_path: Path) -> None:
    lock = lock_state(tmp_path / "state")
    with pytest.raises(ConfigError, match="another server uses the adapters there"):
        lock_state(tmp_path / "state")
    lock.close()
    lock_state(tmp_path / "state").close()


def test_vllm_reads_a_copy_that_later_changes_do_not_reach(state: Path, root: Path) -> None:
    adapter, reference = store_version(state, root, str(root / "adapter"), str(root / "reference"))
    assert adapter.path.is_relative_to(state)
    (root / "adapter" / "adapter_config.json").write_text("{}")
    open_version(state, adapter.digest, reference.digest)
    with pytest.raises(TamperedError):
        store(state, root)
    (adapter.path / "adapter_config.json").write_text("x" * 90)
    with pytest.raises(TamperedError):
        open_version(state, adapter.digest, reference.digest)


def test_another_digest_than_the_caller_expects_is_refused(state: Path, root: Path) -> None:
    with pytest.raises(TamperedError, match="expected 000000000000"):
        store(state, root, "sha256:" + "0" * 64)
    assert list((state / "versions").iterdir()) == []


def test_bytes_that_differ_from_the_manifest_are_refused(state: Path, root: Path) -> None:
    weights = root / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(TamperedError, match=r"adapter_model\.safetensors: sha256"):
        store(state, root)
    assert list((state / "versions").iterdir()) == []


@pytest.mark.parametrize("place", ["outside", "../outside", "link", "relative"])
def test_only_folders_below_the_root_are_read(
    state: Path, root: Path, tmp_path: Path, place: str
) -> None:
    make_adapter(tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    paths = {
        "outside": str(tmp_path / "outside"), "../outside": str(root / ".." / "outside"),
        "link": str(root / "link"), "relative": "adapter",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"absolute path below serving\.adapters\.root"):
        store_version(state, root, paths[place], str(root / "reference"))


def test_a_file_that_links_out_of_the_root_is_not_copied(
    state: Path, root: Path, tmp_path: Path
) -> None:
    weights = root / "adapter" / "adapter_model.safetensors"
    secret = tmp_path / "secret"
    weights.rename(secret)
    weights.symlink_to(secret)
    with pytest.raises(ConfigError, match=r"below serving\.adapters\.root"):
        store(state, root)


def test_no_file_outside_the_root_is_measured_or_read(
    state: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a harmless text")
    manifest = root / "adapter" / "manifest.json"
    text = manifest.read_text()
    listed = "adapter_config.json"
    seen: list[Path] = []
    is_file, file_sha256 = Path.is_file, files_module.file_sha256

    def measured(path: Path) -> bool:
        seen.append(path)
        return is_file(path)

    def hashed(path: Path) -> str:
        seen.append(path)
        return file_sha256(path)

    monkeypatch.setattr(Path, "is_file", measured)
    monkeypatch.setattr(files_module, "file_sha256", hashed)
    for name in (str(secret), f"../../{secret.name}"):
        manifest.write_text(text.replace(f'"{listed}"', json.dumps(name)))
        with pytest.raises(TunelineError, match=r"leaves the folder|expected a manifest"):
            store(state, root)
    manifest.write_text(text)
    store(state, root)
    assert seen  # the two functions do what is watched
    seen.clear()
    (root / "adapter" / "extra").symlink_to(secret)
    with pytest.raises(ConfigError, match=r"below serving\.adapters\.root"):
        store(state, root)
    (root / "adapter" / "extra").unlink()
    manifest.rename(tmp_path / "manifest.json")
    manifest.symlink_to(tmp_path / "manifest.json")
    with pytest.raises(ConfigError, match=r"below serving\.adapters\.root"):
        store(state, root)
    assert [path for path in seen if path.resolve() == secret or path.parent == tmp_path] == []


def test_a_copy_is_on_the_disk_before_it_has_its_name(
    state: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    adapter, reference = store_version(state, root, str(root / "adapter"), str(root / "reference"))
    versions = state / "versions"
    draft = next(path for path in map(Path, synced) if path.parent == versions)
    kept = list(adapter.path.parent.rglob("*"))
    assert len(kept) > 5
    for path in kept:
        assert str(draft / path.relative_to(adapter.path.parent)) in synced
    assert synced[-1] == str(versions)
    write_state(state, {"a": desired(adapter.digest, reference.digest)})
    assert synced[-1] == str(state)


def test_an_artifact_of_another_kind_is_refused(state: Path, root: Path) -> None:
    with pytest.raises(ArtifactError, match="is an artifact of kind 'reference'"):
        store_version(state, root, str(root / "reference"), str(root / "reference"))
    with pytest.raises(NotAnArtifactError):
        store_version(state, root, str(root), str(root / "reference"))


def test_only_copies_that_a_name_needs_are_kept(state: Path, root: Path) -> None:
    store(state, root)
    made = make_adapter(root / "other", scale=2.0)
    other = make_reference(root / "other-reference", made)
    kept, _ = store_version(state, root, str(made.path), str(other.path))
    (state / "versions" / ".left").mkdir()
    remove_other_versions(state, [desired(made.digest, other.digest)])
    assert list((state / "versions").iterdir()) == [version_dir(state, made.digest, other.digest)]
    assert kept.path.is_dir()
