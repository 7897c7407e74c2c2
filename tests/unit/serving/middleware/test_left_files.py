"""The files that a container removes at its start."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from serving.middleware.left_files import remove_left_files


def make(folder: Path) -> None:
    """Write a socket, a folder of tempfile, and two files that belong to nobody in particular."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    (folder / "tmpabc").mkdir()
    (folder / "tmpabc" / "counters.db").touch()
    (folder / "psm_1234").touch()
    (folder / "notes").mkdir()


@pytest.fixture
def volumes(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("tmp", "shm"):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
        for entry in (tmp_path / name).iterdir():
            os.utime(entry, (1.0, 1.0))
        (tmp_path / name / "psm_new").touch()
        (tmp_path / name / "tmpnew").mkdir()
    return tmp_path / "tmp", tmp_path / "shm"


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_container_removes_the_files_of_those_before(
    volumes: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1)
    remove_left_files(volumes)
    assert names(volumes[0]) == {"notes", "psm_1234", "psm_new", "tmpnew"}
    assert names(volumes[1]) == {"notes", "psm_new", "tmpnew"}


def test_any_other_process_removes_nothing(volumes: tuple[Path, Path]) -> None:
    before = [names(folder) for folder in volumes]
    remove_left_files(volumes)
    assert [names(folder) for folder in volumes] == before and len(before[0]) == 6


def test_a_link_and_a_missing_folder_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1)
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "tmp"
    folder.mkdir()
    (folder / "tmplink").symlink_to(outside)
    os.utime(folder / "tmplink", (1.0, 1.0), follow_symlinks=False)
    remove_left_files([tmp_path / "missing", folder])
    assert outside.is_dir() and (folder / "tmplink").is_symlink()
