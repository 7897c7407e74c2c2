"""The error of several processes is that of the process that failed first."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from training.launch.processes import _failure
from training.launch.rank import error_file
from tuneline.core.errors import ConfigError, MissingError

BUG: dict[str, str | None] = {
    "kind": "",
    "message": "RuntimeError: Connection closed by peer",
    "hint": None,
}
LOST: dict[str, str | None] = {
    "kind": "PeerLostError",
    "message": "rank 0 on a lost another rank: reset",
    "hint": "Look.",
}
OWN: dict[str, str | None] = {
    "kind": "ConfigError",
    "message": "training: the loss is nan",
    "hint": "Lower it.",
}


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


@pytest.mark.parametrize(
    ("number", "said", "names_memory"),
    [
        (signal.SIGKILL, "rank 1 of the training was ended by SIGKILL; the other", True),
        (signal.SIGSEGV, "rank 1 of the training was ended by SIGSEGV; the other", False),
        # Every rank stops with the signal of one, so that none of them is the cause.
        (signal.SIGTERM, "the training was stopped: SIGTERM came to one of its ranks", False),
    ],
)
def test_a_signal_is_named_with_what_it_means(
    tmp_path: Path, number: signal.Signals, said: str, names_memory: bool
) -> None:
    error = _failure(tmp_path, {1: -number, 0: -signal.SIGKILL}, {0})
    assert isinstance(error, MissingError) and error.message.startswith(said)
    hint = str(error.hint)
    assert ("memory" in hint) == names_memory
    assert "The same command continues from the newest checkpoint." in hint


@pytest.mark.parametrize("with_words", [True, False])
def test_a_bug_names_the_rank_and_its_log(tmp_path: Path, with_words: bool) -> None:
    if with_words:
        _say(tmp_path, 1, BUG)
    error = _failure(tmp_path, {1: 1}, set())
    assert isinstance(error, RuntimeError)
    assert f"rank 1 (log: {tmp_path / 'rank-1.log'})" in str(error)
    assert ("Connection closed" in str(error)) == with_words


@pytest.mark.parametrize("cause", ["own", "killed", "bug"])
def test_the_cause_is_told_before_the_loss_of_a_peer(tmp_path: Path, cause: str) -> None:
    _say(tmp_path, 0, LOST)
    if cause != "killed":
        _say(tmp_path, 1, {"own": OWN, "bug": BUG}[cause])
    error = _failure(tmp_path, {0: 4, 1: -9 if cause == "killed" else 1}, set())
    assert "rank 1" in str(error)
    assert "lost another rank" not in str(error)


def test_a_loss_of_a_peer_on_another_host_is_an_accident(tmp_path: Path) -> None:
    _say(tmp_path, 1, LOST)
    error = _failure(tmp_path, {1: 4, 0: -9}, {0})
    assert isinstance(error, MissingError)
    assert error.message == "rank 1: rank 0 on a lost another rank: reset"
    assert error.exit_code == 4
