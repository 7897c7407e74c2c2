"""When the supervisor ends a server that does not end by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.supervisor import restarts, vllm_log
from serving.supervisor.restarts import _watch
from serving.supervisor.signals import Stops


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
