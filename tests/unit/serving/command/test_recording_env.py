"""The variable of a server that records requests, and the folders that it cannot have."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from serving import plan_container
from serving.command.recording_env import recording_env
from serving.config import RecordingConfig, ServingConfig
from serving.middleware.settings import read_recording
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError
from tuneline.models.source import ModelSource


def test_the_middleware_reads_what_the_command_writes(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "recorded"
    wanted = RecordingConfig(folder=str(folder), share=0.5, max_gib=2, keep_days=7)
    found = read_recording(recording_env(wanted))
    assert found is not None
    assert vars(found) == {
        "folder": str(folder), "share": 0.5, "max_bytes": 2 * 2**30, "keep_s": 7 * 86_400,
    }  # fmt: skip
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_relative_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = read_recording(recording_env(RecordingConfig(folder="recorded")))
    assert found is not None and found.folder == str(tmp_path / "recorded")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"serving\.recording\.folder: .*: Not a directory"):
        recording_env(RecordingConfig(folder=str(tmp_path / "file" / "recorded")))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"share": 1.5}, "share"),
        ({"max_gib": 0.1}, "max_gib"),
        ({"keep_days": 0}, "keep_days"),
        ({"folder": None}, "folder"),
    ],
)
def test_other_values_are_refused(values: dict[str, Any], problem: str) -> None:
    section = {"recording": {"folder": "recorded", **values}}
    with pytest.raises(ConfigError, match=problem):
        validate_config(ServingConfig, section, "test")


def test_a_server_of_vectors_records_nothing() -> None:
    section = {"recording": {"folder": "recorded"}, "routes": ["embeddings"]}
    with pytest.raises(ConfigError, match="recording: needs a server of text"):
        validate_config(ServingConfig, section, "test")


@pytest.mark.parametrize(
    ("recording", "folder"), [(RecordingConfig(folder="recorded"), None), (None, "/recorded")]
)
def test_a_container_has_the_folder_where_it_records(
    tmp_path: Path, recording: RecordingConfig | None, folder: str | None
) -> None:
    model = ModelSource("tickets", tmp_path, "sha256:" + "1" * 64, "model")
    with pytest.raises(ConfigError, match=r"serving\.recording and k8s\.recording_claim"):
        plan_container(
            ServingConfig(recording=recording), model, model_dir="/model", host="0.0.0.0",  # noqa: S104
            port=8000, recording_dir=folder,
        )  # fmt: skip
