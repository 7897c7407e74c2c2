from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tuneline.core.disk import replace_file
from tuneline.core.errors import ArtifactError, DiskFullError


def test_a_file_is_replaced_and_its_draft_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    replace_file(path, "eins\n")
    replace_file(path, "zwei ä\n")
    assert path.read_text(encoding="utf-8") == "zwei ä\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_a_new_file_has_the_mode_that_is_asked(mode: int, tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        replace_file(tmp_path / "a", "x", mode=mode)
    finally:
        os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode & ~0o022


@pytest.mark.parametrize("place", ["folder", "file/a", "missing/a"])
def test_a_place_that_takes_no_file_is_named_in_the_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=f"{tmp_path / place}: cannot be written"):
        replace_file(tmp_path / place, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a"
    path.write_text("earlier")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="the disk is full"):
            replace_file(path, "new")
    assert path.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
