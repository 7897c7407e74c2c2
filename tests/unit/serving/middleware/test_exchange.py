"""Errors in the shapes that clients read: OpenAI's, and Anthropic's on its routes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serving.middleware.app import TunelineMiddleware
from serving.middleware.asgi import Message
from serving.middleware.exchange import Exchange
from tests.unit.serving.middleware.harness import CHAT, Inner, ask

MESSAGES = "/v1/messages"
WHY = "The engine made no progress; the answer was ended."


def ended(path: str, kind: bytes | None) -> tuple[int, bytes]:
    """Return status and body of an answer that the server ends.

    Args:
        kind: The content type of an answer that has begun; None before an answer begins.
    """
    sent: list[Message] = []

    async def scene() -> None:
        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            raise AssertionError("nothing more is asked of the client")

        exchange = Exchange({"path": path, "headers": []}, receive, send, [])
        if kind is not None:
            headers = [(b"content-type", kind)]
            start = {"type": "http.response.start", "status": 200, "headers": headers}
            await exchange.send(start)
        exchange.end(503, "ServiceUnavailableError", WHY)
        await exchange._ending

    asyncio.run(scene())
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_a_stream_of_openai_ends_with_an_error_and_done() -> None:
    status, body = ended(CHAT, b"text/event-stream; charset=utf-8")
    data, done = body.decode().strip().split("\n\n")
    assert (status, done) == (200, "data: [DONE]")
    error = json.loads(data.removeprefix("data: "))["error"]
    assert (error["message"], error["code"]) == (WHY, 503)


def test_a_stream_of_anthropic_ends_with_a_named_error() -> None:
    """Anthropic's client passes over events without a name, and would take the answer as whole."""
    status, body = ended(MESSAGES, b"text/event-stream; charset=utf-8")
    name, data = body.decode().strip().split("\n")
    assert (status, name) == (200, "event: error")
    found = json.loads(data.removeprefix("data: "))
    assert found["type"] == "error"
    assert (found["error"]["type"], found["error"]["message"]) == ("overloaded_error", WHY)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_an_answer_that_has_not_begun_gets_the_status(path: str) -> None:
    status, body = ended(path, None)
    assert status == 503
    assert json.loads(body)["error"]["message"] == WHY


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens"])
@pytest.mark.parametrize(
    ("given", "status", "kind"),
    [
        ({"key": "wrong"}, 401, "authentication_error"),
        ({"fields": {"chat_template": "x"}}, 400, "invalid_request_error"),
        ({"method": "GET"}, 405, "invalid_request_error"),
    ],
)
def test_refusals_of_anthropics_routes_have_its_shape(
    monkeypatch: pytest.MonkeyPatch, path: str, given: dict[str, Any], status: int, kind: str
) -> None:
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps({"routes": ["messages"]}))
    monkeypatch.setenv("VLLM_API_KEY", "right")
    options: dict[str, Any] = {"key": "right", "fields": {}, **given}
    answer = ask(TunelineMiddleware(Inner()), path, options.pop("fields"), **options)
    found = json.loads(answer.body)
    assert (answer.status, found["type"], found["error"]["type"]) == (status, "error", kind)
