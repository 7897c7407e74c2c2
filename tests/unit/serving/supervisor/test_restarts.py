"""When the supervisor ends a server that does not end by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import ServingConfig
from serving.supervisor import restarts, vllm_log
from serving.supervisor.restarts import _watch, serve_model
from serving.supervisor.signals import Stops
from tuneline.core.errors import ServerError


class Probed:
    """Answers probes with a status that follows from the seconds since its start."""

    def __init__(self, health: Callable[[float], int | None]) -> None:
        self.began_s = time.monotonic()
        self.launch = SimpleNamespace(log_path=Path("/nonexistent/serve.log"))
        self._health = health

    def exit_code(self) -> int | None:
        return 0 if time.monotonic() - self.began_s > 0.8 else None

    def health(self) -> int | None:
        return self._health(time.monotonic() - self.began_s)


@pytest.mark.parametrize(
    ("health", "why"),
    [
        (lambda _: 200, None),
        (lambda _: 503, "vLLM made no progress while requests were running"),
        # The engine moves again before the grace is over.
        (lambda at_s: 503 if at_s < 0.2 else 200, None),
        (lambda _: None, "vLLM answered no probe for "),
        # A front end that parses a large body misses some probes.
        (lambda at_s: None if int(at_s / 0.1) % 2 else 200, None),
    ],
)
def test_a_server_is_ended_if_it_is_stuck_and_stays_so(
    monkeypatch: pytest.MonkeyPatch, health: Callable[[float], int | None], why: str | None
) -> None:
    for name, seconds in {"POLL_INTERVAL_S": 0.01, "HEALTH_INTERVAL_S": 0.05, "GRACE_S": 0.3,
                          "UNANSWERED_S": 0.4}.items():  # fmt: skip
        monkeypatch.setattr(restarts, name, seconds)
    server: Any = Probed(health)
    found = _watch(server, Stops())
    assert (found is None) == (why is None)
    assert why is None or (found or "").startswith(why)


class Crashing:
    """A server that gets ready and then ends, each time that it is started."""

    def __init__(self, *_: Any) -> None:
        self.restarts = self.num_starts = 0

    def start(self) -> None:
        self.num_starts += 1

    def wait_until_ready(self, _: Stops) -> bool:
        return True

    def running(self) -> int:
        return self.num_starts

    def death(self, when: str) -> ServerError:
        return ServerError(f"vLLM died {when}")

    def stop(self, _: Stops | None = None) -> None:
        pass

    close = stop


def test_the_address_of_a_server_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`tuneline serve --json` prints one document, however often the server starts again."""
    replaced: dict[str, Any] = {
        "Server": Crashing, "plan_launch": lambda *_: None, "answers_chats": lambda *_: True,
        "_how_to_call": lambda *_: "", "_watch": lambda *_: None, "_sleep": lambda *_: False,
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(restarts, name, value)
    told: list[Any] = []
    model: Any = None
    with pytest.raises(ServerError, match="vLLM died while serving"):
        serve_model(
            ServingConfig(max_restarts=2), model, name="t", log_path=tmp_path, on_ready=told.append
        )
    assert told == [1]


def test_a_log_that_grows_while_the_server_runs_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "HEALTH_INTERVAL_S", 0.05)
    monkeypatch.setattr(vllm_log, "MOST_BYTES", 100)
    server: Any = Probed(lambda _: 200)
    log_path = server.launch.log_path = tmp_path / "serve.log"
    with log_path.open("ab", buffering=0) as log:  # as the server has it open
        log.write(b"x" * 101)
        assert _watch(server, Stops()) is None
        log.write(b"later")
    assert log_path.read_text() == "later"
    assert (tmp_path / "serve.log.1").read_text() == "x" * 101
