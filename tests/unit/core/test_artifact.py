"""Artifacts are whole or absent, and a change of any byte shows."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest

from tuneline.core import artifact as artifact_module
from tuneline.core import lock
from tuneline.core.artifact import (
    Input,
    canonical_digest,
    new_artifact,
    open_artifact,
    verify_artifact,
)
from tuneline.core.disk import require_disk_space
from tuneline.core.errors import ArtifactError, DiskFullError, NotAnArtifactError, TamperedError


def write(out: Path, text: str = "hello") -> None:
    with new_artifact(
        out,
        "dataset",
        config={"seed": 1},
        inputs=[Input(role="data", kind="file", digest="sha256:ab")],
    ) as draft:
        (draft.dir / "inner").mkdir()
        (draft.dir / "inner" / "a.txt").write_text(text)
        (draft.dir / "b.txt").write_text("b")
        draft.metrics["rows"] = 2


def test_written_whole_and_read_back(tmp_path: Path) -> None:
    write(tmp_path / "x")
    opened = open_artifact(tmp_path / "x", kind="dataset")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]
    assert [entry.path for entry in opened.manifest.files] == ["b.txt", "inner/a.txt"]
    assert opened.manifest.files[1].sha256 == hashlib.sha256(b"hello").hexdigest()
    assert opened.manifest.metrics == {"rows": 2}
    assert opened.manifest.config == {"seed": 1}
    assert opened.manifest.environment["python"].startswith("3.")
    assert str(tmp_path) not in (tmp_path / "x" / "manifest.json").read_text()
    verify_artifact(opened)


def test_digest_covers_only_kind_and_files(tmp_path: Path) -> None:
    write(tmp_path / "x")
    write(tmp_path / "elsewhere" / "y")
    write(tmp_path / "z", "other")
    with new_artifact(tmp_path / "k", "model", config={}) as draft:
        shutil.copytree(tmp_path / "x", draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
    digests = [open_artifact(tmp_path / p).digest for p in ("x", "elsewhere/y", "z", "k")]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_moving_a_directory_keeps_it_valid(tmp_path: Path) -> None:
    write(tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "moved")
    verify_artifact(open_artifact(tmp_path / "moved"))


def test_written_once(tmp_path: Path) -> None:
    write(tmp_path / "x")
    with pytest.raises(ArtifactError, match="exists already"):
        write(tmp_path / "x")


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError),
        new_artifact(tmp_path / "x", "dataset", config={}) as draft,
    ):
        (draft.dir / "a").write_text("a")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        new_artifact(tmp_path / "x", "dataset", config={}) as draft,
        pytest.raises(ArtifactError, match="another process"),
    ):
        (draft.dir / "a").write_text("a")
        write(tmp_path / "x")


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from tuneline.core.artifact import new_artifact
with new_artifact(Path(sys.argv[1]), "dataset", config={}) as draft:
    (draft.dir / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_comes_too_late_does_no_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first writer ends between the second one's look at `out` and its lock."""

    @contextmanager
    def locked_late(_path: Path) -> Iterator[None]:
        monkeypatch.setattr(artifact_module, "locked_file", lock.locked_file)
        write(tmp_path / "x")
        yield

    monkeypatch.setattr(artifact_module, "locked_file", locked_late)
    with pytest.raises(ArtifactError, match="exists already"):
        write(tmp_path / "x", "late")
    verify_artifact(open_artifact(tmp_path / "x"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("my folder", "Check the path."),
        ("adapter-0123456789", "Remove it and run its step again: rm -r '{path}'"),
        ("my run", "It holds artifacts; give one of them, such as {path}/x."),
    ],
)
def test_only_a_directory_of_ours_is_to_be_removed(tmp_path: Path, name: str, hint: str) -> None:
    path = tmp_path / "with space" / name
    path.mkdir(parents=True)
    if name == "my run":
        write(path / "x")
    with pytest.raises(NotAnArtifactError) as caught:
        open_artifact(path)
    assert (caught.value.hint or "").endswith(hint.format(path=path))


def test_killed_writer_leaves_no_artifact_and_can_be_run_again(tmp_path: Path) -> None:
    out = tmp_path / "x"
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / ".x.partial" / "a").read_text() == "half"
    with pytest.raises(NotAnArtifactError):
        open_artifact(out)
    write(out)
    assert {entry.path for entry in open_artifact(out).manifest.files} == {"b.txt", "inner/a.txt"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def test_tampering_is_found(tmp_path: Path) -> None:
    write(tmp_path / "x")
    (tmp_path / "x" / "b.txt").write_text("c")  # same size
    with pytest.raises(TamperedError, match=r"b\.txt: sha256"):
        verify_artifact(open_artifact(tmp_path / "x"))
    (tmp_path / "x" / "b.txt").write_text("longer")
    with pytest.raises(TamperedError, match="expected 1 bytes, found 6 bytes"):
        open_artifact(tmp_path / "x")


def test_missing_extra_and_rewritten_manifest_are_found(tmp_path: Path) -> None:
    write(tmp_path / "x")
    opened = open_artifact(tmp_path / "x")
    (tmp_path / "x" / "extra").write_text("?")
    with pytest.raises(TamperedError, match="extra: not in the manifest"):
        verify_artifact(opened)
    (tmp_path / "x" / "extra").unlink()
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    (tmp_path / "x" / "b.txt").write_text("c")
    manifest["files"][0]["sha256"] = hashlib.sha256(b"c").hexdigest()
    (tmp_path / "x" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TamperedError, match="digest does not match"):
        verify_artifact(open_artifact(tmp_path / "x"))


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 100_000, '{"schema_version": 99}'])
def test_a_broken_manifest_is_not_an_artifact(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(NotAnArtifactError, match=r"manifest\.json"):
        open_artifact(tmp_path)


def test_a_manifest_with_a_key_that_appears_twice_is_not_read(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "x", "model", config={}) as draft:
        (draft.dir / "a.txt").write_text("a")
    manifest = tmp_path / "x" / "manifest.json"
    manifest.write_text('{"kind": "adapter",' + manifest.read_text()[1:])
    with pytest.raises(NotAnArtifactError, match=r"manifest\.json: the key 'kind' appears twice"):
        open_artifact(tmp_path / "x")


def test_kind_is_checked(tmp_path: Path) -> None:
    write(tmp_path / "x")
    with pytest.raises(ArtifactError, match="expected model"):
        open_artifact(tmp_path / "x", kind="model")


def test_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskFullError, match="disk is full"),
        new_artifact(tmp_path / "x", "dataset", config={}) as draft,
    ):
        (draft.dir / "a").write_text("a")
        with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 (a real ENOSPC)
            full.write(b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values", [numpy.ones(9000), numpy.ones(9000)[::2]], ids=["whole", "slice"]
)
def test_a_disk_that_numpy_finds_full_is_named(values: numpy.ndarray, tmp_path: Path) -> None:
    """numpy raises an OSError without a code. ONNX graphs are written through it."""
    with (
        pytest.raises(DiskFullError, match="disk is full"),
        new_artifact(tmp_path / "x", "onnx", config={}),
    ):
        values.tofile("/dev/full")
    assert list(tmp_path.iterdir()) == []


def test_space_is_asked_for_before_writing(tmp_path: Path) -> None:
    require_disk_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(DiskFullError, match="MiB are free; expected"):
        require_disk_space(tmp_path, 2**60)


def test_other_os_errors_pass_through(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="denied") as caught,
        new_artifact(tmp_path / "x", "dataset", config={}),
    ):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES) + " denied")
    assert not isinstance(caught.value, ArtifactError)


def test_canonical_digest_ignores_key_order() -> None:
    assert canonical_digest({"a": 1, "b": [2]}) == canonical_digest({"b": [2], "a": 1})
    expected = hashlib.sha256(b'{"a":1}').hexdigest()
    assert canonical_digest({"a": 1}) == f"sha256:{expected}"
    assert artifact_module.SCHEMA_VERSION == 1


def resumable(out: Path, seed: int = 1) -> Any:
    return new_artifact(out, "model", config={"seed": seed}, resumable=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_resumable_step_finds_what_it_left(
    error: type[BaseException], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(error), resumable(out) as draft:
        (draft.dir / "a.txt").write_text("half")
        with draft.journal.open("a") as journal:
            journal.write("noted\n")
        raise error
    assert not out.exists()
    with resumable(out) as draft:
        assert (draft.dir / "a.txt").read_text() == "half"
        assert draft.journal.read_text().splitlines()[1:] == ["noted"]
    assert [entry.path for entry in open_artifact(out).manifest.files] == ["a.txt"]
    verify_artifact(open_artifact(out))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_another_step_left_is_thrown_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for seed in (1, 2):
        with pytest.raises(KeyboardInterrupt), resumable(out, seed) as draft:
            assert not (draft.dir / "a.txt").exists()
            (draft.dir / "a.txt").write_text("half")
            raise KeyboardInterrupt
    write(out)
    assert (out / "b.txt").exists()
    assert not (out / "a.txt").exists()


def test_a_resumable_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError), resumable(tmp_path / "out") as draft:
        (draft.dir / "a.txt").write_text("half")
        raise ArtifactError("a wrong value")
    assert list(tmp_path.iterdir()) == []


def test_a_hash_made_while_writing_is_in_the_manifest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_artifact(out, "model", config={}) as draft:
        (draft.dir / "a.txt").write_text("hello")
        draft.sha256["a.txt"] = hashlib.sha256(b"hello").hexdigest()
    verify_artifact(open_artifact(out))
