"""The error of several processes is that of the process that failed first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from training.launch.processes import _failure
from training.launch.rank import error_file
from tuneline.core.errors import ConfigError, MissingError

BUG = {"kind": "", "message": "RuntimeError: Connection closed by peer", "hint": None}
OWN = {"kind": "ConfigError", "message": "training: the loss is nan", "hint": "Lower it."}


def _say(folder: Path, rank: int, words: Mapping[str, str | None]) -> None:
    error_file(folder, rank).write_text(json.dumps(words))


def test_a_rank_s_own_error_is_told_before_the_errors_of_its_peers(tmp_path: Path) -> None:
    _say(tmp_path, 0, BUG)
    _say(tmp_path, 1, OWN)
    error = _failure(tmp_path, {0: 1, 1: 2, 2: -9}, {2})
    assert isinstance(error, ConfigError)
    assert error.message == "rank 1: training: the loss is nan"
    assert error.hint == "Lower it."


def test_a_killed_rank_is_told_before_the_errors_of_its_peers(tmp_path: Path) -> None:
    _say(tmp_path, 0, BUG)
    error = _failure(tmp_path, {0: 1, 1: -9, 2: -9}, {2})
    assert isinstance(error, MissingError)
    assert "rank 1 of the training was ended by SIGKILL" in error.message
    assert error.exit_code == 4


@pytest.mark.parametrize("with_words", [True, False])
def test_a_bug_names_the_rank_and_its_log(tmp_path: Path, with_words: bool) -> None:
    if with_words:
        _say(tmp_path, 1, BUG)
    error = _failure(tmp_path, {1: 1}, set())
    assert isinstance(error, RuntimeError)
    assert f"rank 1 (log: {tmp_path / 'rank-1.log'})" in str(error)
    assert ("Connection closed" in str(error)) == with_words
