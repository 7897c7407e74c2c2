"""The parts of the time to ready."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import Any

import pytest

from serving.middleware.app import TunelineMiddleware
from serving.middleware.asgi import Message, Receive, Scope, Send
from serving.middleware.first_answer import FAILS
from serving.middleware.startup import process_age_s, start_phases_s


def test_the_age_of_a_process_is_the_kernels() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        time.sleep(0.3)
        assert 0.2 < process_age_s(child.pid) < 10
        assert process_age_s(child.pid) < process_age_s()
        child.communicate(b"\n")


def test_the_phases_add_up_to_the_time_to_ready() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as engine:
        time.sleep(0.2)
        age_s = process_age_s(engine.pid)
        phases = start_phases_s(built_s=9.5, answer_s=0.2, ready_s=10.0, engines=[engine.pid])
        engine.communicate(b"\n")
    assert list(phases) == ["imports", "engine", "routes", "answer"]
    assert phases["routes"] == pytest.approx(0.3)
    assert sum(phases.values()) == pytest.approx(10.0)
    assert phases["imports"] == pytest.approx(min(10.0 - age_s, 9.5), abs=0.2)


def test_a_front_end_without_an_engine_of_its_own_has_no_imports() -> None:
    phases = start_phases_s(built_s=9.0, answer_s=0.25, ready_s=10.0, engines=[])
    assert phases == {"engine": 9.0, "routes": 0.75, "answer": 0.25}


@pytest.mark.parametrize(
    ("status", "routes", "path"),
    [
        (200, [], "/v1/completions"),
        (400, [], "/v1/completions"),
        (200, ["embeddings"], "/pooling"),
        (500, [], "/v1/completions"),
        (None, [], "/v1/completions"),
    ],
)
def test_no_server_starts_whose_first_request_fails(
    monkeypatch: pytest.MonkeyPatch, status: int | None, routes: list[str], path: str
) -> None:
    """Mamba on a CPU: vLLM says that it is ready, and its engine dies at the first request."""
    from serving.middleware import app as app_module

    started: list[bool] = []
    asked: list[Any] = []
    monkeypatch.setattr(app_module, "call_on_sigterm", lambda _: started.append(True))
    monkeypatch.setenv("TUNELINE_ARTIFACT_NAME", "tickets")
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps({"routes": routes}))

    async def vllm(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await send({"type": "lifespan.startup.complete"})
            return
        asked.append((scope["path"], json.loads((await receive())["body"])["model"]))
        if status is None:
            raise RuntimeError("no kernel")
        await send({"type": "http.response.start", "status": status, "headers": []})
        error = {"error": {"message": "EngineCore encountered an issue."}}
        await send({"type": "http.response.body", "body": json.dumps(error).encode()})

    sent: list[Message] = []

    async def scene() -> None:
        async def send(message: Message) -> None:
            sent.append(message)

        await TunelineMiddleware(vllm)({"type": "lifespan"}, asyncio.Event().wait, send)  # type: ignore[arg-type]

    asyncio.run(scene())
    assert asked == [(path, "tickets")]
    if status in (200, 400):
        assert sent == [{"type": "lifespan.startup.complete"}] and started
    else:
        why = {None: "RuntimeError: no kernel", 500: "status 500: EngineCore encountered an issue."}
        message = f"{FAILS}: {why[status]}"
        assert sent == [{"type": "lifespan.startup.failed", "message": message}] and not started
