"""The middleware around a plain ASGI app. Its metrics are global: tests look at differences."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from serving.middleware import app as app_module
from serving.middleware.app import TunelineMiddleware
from serving.middleware.asgi import Message
from serving.middleware.drain import UNSENT_INTERVAL_S
from tests.unit.serving.middleware.harness import CHAT, Inner, ask, send_request


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture(autouse=True)
def handed_on(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Keep the signal that ends vLLM's process from the process of the tests."""
    calls: list[bool] = []

    def hand_on(*, exits_at_once: bool) -> None:
        calls.append(exits_at_once)

    monkeypatch.setattr(app_module, "hand_on", hand_on)
    return calls


def request(
    middleware: TunelineMiddleware, path: str, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    answer = ask(middleware, path, method=method)
    return answer.status, answer.headers, answer.body


LISTED = {
    "/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/models": "GET",
    "/health": "GET", "/metrics": "GET", "/version": "GET",
}  # fmt: skip


@pytest.mark.parametrize(("path", "method"), LISTED.items())
def test_listed_routes_reach_vllm(inner: Inner, path: str, method: str) -> None:
    assert request(TunelineMiddleware(inner), path, method)[0] == 200
    assert inner.paths == [path]


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/v1/chat/completions", "GET", "POST"),
        ("/v1/completions", "PUT", "POST"),
        ("/v1/models", "POST", "GET, HEAD"),
        ("/v1/models/a", "DELETE", "GET, HEAD"),
        ("/metrics", "POST", "GET, HEAD"),
    ],
)
def test_another_method_is_refused_as_openai_does(
    inner: Inner, path: str, method: str, allowed: str
) -> None:
    answer = ask(TunelineMiddleware(inner), path, method=method)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert answer.error["type"] == "MethodNotAllowedError"
    assert inner.paths == []


@pytest.mark.parametrize(
    "path",
    ["/invocations", "/adapters", "/docs", "/openapi.json", "/load", "/v1/load_lora_adapter",
     "/v1/chat/completions/", "/v1/../invocations", "//invocations", "/", "/v1/files"],
)  # fmt: skip
def test_other_routes_do_not_exist(inner: Inner, path: str) -> None:
    status, headers, body = request(TunelineMiddleware(inner), path, "POST")
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    error = json.loads(body)["error"]
    assert error == {
        "message": f"Unknown route: POST {path}",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
    }
    assert inner.paths == []


@pytest.mark.parametrize(
    ("options", "path", "hint"),
    [
        ((), "/chat/completions", "check the client's base URL: OpenAI's ends in /v1"),
        ((), "/models", "check the client's base URL: OpenAI's ends in /v1"),
        ((), "/v1/v1/messages", "check the client's base URL: OpenAI's ends in /v1, Anthropic's "
         "does not"),
        ((), "/v1/responses", "serving.routes: [responses] opens it"),
        ((), "/tokenize", "serving.routes: [tokenize] opens it"),
        ((), "/v1/adapters", "serving.adapters opens it"),
        (["pooling"], "/v1/chat/completions", "this server computes vectors or scores in place "
         "of text"),
        (["pooling"], "/v1/embeddings", "serving.routes: [embeddings] opens it"),
    ],
)  # fmt: skip
def test_a_route_that_is_closed_here_says_why(
    inner: Inner, monkeypatch: pytest.MonkeyPatch, options: list[str], path: str, hint: str
) -> None:
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps({"routes": options}))
    status, _, body = request(TunelineMiddleware(inner), path, "POST")
    message = json.loads(body)["error"]["message"]
    assert status == 404
    assert message.startswith(f"Unknown route: POST {path}; {hint}")
    assert inner.paths == []


def test_ready_until_the_drain(inner: Inner) -> None:
    middleware = TunelineMiddleware(inner)
    assert request(middleware, "/ready")[0] == 200
    middleware.drain()
    status, headers, _ = request(middleware, "/ready")
    assert (status, headers["retry-after"]) == (503, "5")
    assert inner.paths == []


def test_new_work_is_refused_during_the_drain_and_the_rest_goes_on(inner: Inner) -> None:
    middleware = TunelineMiddleware(inner)
    middleware.drain()
    for path in ("/v1/chat/completions", "/v1/completions"):
        status, headers, body = request(middleware, path, "POST")
        assert (status, headers["retry-after"]) == (503, "5")
        assert json.loads(body)["error"]["type"] == "ServiceUnavailableError"
    assert inner.paths == []
    assert request(middleware, "/health")[0] == request(middleware, "/metrics")[0] == 200
    assert inner.paths == ["/health", "/metrics"]


def test_vllm_ends_when_nothing_is_in_flight(handed_on: list[bool]) -> None:
    async def scene() -> list[object]:
        inner = Inner()
        inner.gate = asyncio.Event()
        middleware = TunelineMiddleware(inner)
        streams = [
            asyncio.create_task(send_request(middleware, CHAT, {"stream": True})) for _ in range(3)
        ]
        slow = asyncio.create_task(send_request(middleware, CHAT, parts=[b"{", 0.2, b"}"]))
        while inner.running < 3:
            await asyncio.sleep(0.001)
        middleware.drain()
        middleware.drain()  # a second signal changes nothing
        during = len(handed_on)
        refused = await send_request(middleware, CHAT, {})
        late = await slow  # its body came after the signal
        inner.gate.set()
        answers = [answer.body for answer in await asyncio.gather(*streams)]
        assert all(body.endswith(b"data: [DONE]\n\n") for body in answers)
        return [during, refused.status, late.status, len(handed_on), len(answers)]

    assert asyncio.run(scene()) == [0, 503, 503, 1, 3]


def test_a_drain_ends_at_its_deadline(
    handed_on: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNELINE_SETTINGS", '{"shutdown_timeout_s": 0.1}')

    async def scene() -> None:
        inner = Inner()
        inner.gate = asyncio.Event()
        middleware = TunelineMiddleware(inner)
        stream = asyncio.create_task(send_request(middleware, CHAT, {"stream": True}))
        while not inner.running:
            await asyncio.sleep(0.001)
        middleware.drain()
        await asyncio.sleep(0.05)
        assert handed_on == []
        await asyncio.sleep(0.15)
        assert handed_on == [True]
        inner.gate.set()
        await stream

    asyncio.run(scene())
    assert handed_on == [True]


def test_a_drain_looks_for_slow_readers_once_however_many_answers_end(
    handed_on: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, is_unsent = 0, True

    def has_unsent() -> bool:
        nonlocal looks
        looks += 1
        return is_unsent

    async def scene() -> None:
        nonlocal is_unsent
        inner = Inner()
        inner.gate = asyncio.Event()
        middleware = TunelineMiddleware(inner)
        monkeypatch.setattr(middleware._connections, "has_unsent", has_unsent)
        streams = [
            asyncio.create_task(send_request(middleware, CHAT, {"stream": True})) for _ in range(3)
        ]
        while inner.running < 3:
            await asyncio.sleep(0.001)
        middleware.drain()
        inner.gate.set()
        await asyncio.gather(*streams)
        for _ in range(50):
            middleware._hand_on_if_done()
        ended = looks
        await asyncio.sleep(4.5 * UNSENT_INTERVAL_S)
        assert 1 <= looks - ended <= 5
        assert handed_on == []
        is_unsent = False
        await asyncio.sleep(2 * UNSENT_INTERVAL_S)
        assert handed_on == [True]

    asyncio.run(scene())


def test_a_websocket_is_closed(inner: Inner) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    asyncio.run(TunelineMiddleware(inner)(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert inner.paths == []


def test_requests_are_counted_by_listed_route_and_status(inner: Inner) -> None:
    def count(route: str, status: str) -> float:
        labels = {"route": route, "status": status}
        return REGISTRY.get_sample_value("tuneline_http_requests_total", labels) or 0.0

    before = count("/v1/models", "200"), count("other", "404")
    middleware = TunelineMiddleware(inner)
    request(middleware, "/v1/models")
    request(middleware, "/a")
    request(middleware, "/b")
    assert (count("/v1/models", "200"), count("other", "404")) == (before[0] + 1, before[1] + 2)


def test_the_artifact_comes_from_the_environment(
    inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"name": "tickets", "kind": "model", "digest": "sha256:00"}
    for name, value in facts.items():
        monkeypatch.setenv(f"TUNELINE_ARTIFACT_{name.upper()}", value)
    monkeypatch.setenv("TUNELINE_RESTARTS", "2")
    before = REGISTRY.get_sample_value("tuneline_restarts_total") or 0.0
    TunelineMiddleware(inner)
    assert REGISTRY.get_sample_value("tuneline_artifact_info", facts) == 1
    assert REGISTRY.get_sample_value("tuneline_restarts_total") == before + 2


COUNTED_RESTARTS = """
import multiprocessing
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from serving.middleware.app import TunelineMiddleware

spawn = multiprocessing.get_context("spawn")
if __name__ == "__main__":
    for number in range(3):
        front_end = spawn.Process(
            target=TunelineMiddleware, args=(None,), name=f"ApiServer_{number}"
        )
        front_end.start()
        front_end.join()
        assert front_end.exitcode == 0
    for metric in MultiProcessCollector(CollectorRegistry()).collect():
        if metric.name == "tuneline_restarts":
            print(*(sample.value for sample in metric.samples))
"""


def test_several_front_ends_count_a_restart_once(tmp_path: Path) -> None:
    script = tmp_path / "front_ends.py"
    script.write_text(COUNTED_RESTARTS)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60,
        env=os.environ | {
            "TUNELINE_RESTARTS": "2", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parents[4]),
        },
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("2.0\n", 0), done.stderr
