"""One request through the middleware, around an app that plays vLLM's routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

from serving.middleware.app import TunelineMiddleware
from serving.middleware.asgi import Message, Receive, Scope, Send

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


class Inner:
    """Answers 200 to every path, as a stream where asked, and remembers what reached it."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.gate: asyncio.Event | None = None
        """If there is one, an answer of work waits for it before its end."""
        self.running = 0
        self.models: list[str] = []

    @property
    def paths(self) -> list[str]:
        return [scope["path"] for scope in self.scopes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["path"] == "/v1/models":
            page = {"data": [{"id": name, "root": f"/srv/{name}"} for name in self.models]}
            await _send(send, b"application/json", [json.dumps(page).encode()])
            return
        body = b""
        if scope["method"] == "POST":
            message = await receive()
            body = message["body"]
            self.bodies.append(body)
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            fields = {}
        fields = fields if isinstance(fields, dict) else {}
        self.running += 1
        try:
            await self._answer(scope, send, fields)
        finally:
            self.running -= 1

    async def _answer(self, scope: Scope, send: Send, fields: Mapping[str, Any]) -> None:
        if not fields.get("stream"):
            if self.gate is not None:
                await self.gate.wait()
            answer = json.dumps({"choices": [{"text": "inner"}], "usage": USAGE}).encode()
            await _send(send, b"application/json", [answer])
            return
        events = [b'data: {"choices":[{"delta":{"content":"in"}}]}\n\n']
        if (fields.get("stream_options") or {}).get("include_usage"):
            events.append(f'data: {{"choices":[],"usage":{json.dumps(USAGE)}}}\n\n'.encode())
        events.append(b"data: [DONE]\n\n")
        # vLLM leaves the usage of every chat and completion here, for middlewares.
        usage = SimpleNamespace(**USAGE)
        scope["state"]["request_metadata"] = SimpleNamespace(final_usage_info=usage)
        await _send(send, b"text/event-stream", events, self.gate)


async def _send(
    send: Send, kind: bytes, parts: Sequence[bytes], gate: asyncio.Event | None = None
) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
    await send(start)
    for number, part in enumerate(parts):
        if number == 1 and gate is not None:
            await gate.wait()
        last = number == len(parts) - 1
        await send({"type": "http.response.body", "body": part, "more_body": not last})


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


async def send_request(
    middleware: TunelineMiddleware,
    path: str = CHAT,
    fields: Mapping[str, Any] | bytes | None = None,
    *,
    method: str | None = None,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    parts: Sequence[bytes | float | None] | None = None,
) -> Answer:
    """Send one request and return its answer.

    Args:
        parts: The body in pieces instead of `fields`; a number pauses for so many seconds, None is
            a client that leaves.
    """
    sent: list[Message] = []
    body = fields if isinstance(fields, bytes) else json.dumps(fields or {}).encode()
    pieces: list[bytes | float | None] = [body] if parts is None else list(parts)

    async def receive() -> Message:
        if not pieces:
            await asyncio.Event().wait()
        piece = pieces.pop(0)
        if isinstance(piece, float):
            await asyncio.sleep(piece)
            return await receive()
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Message) -> None:
        sent.append(message)

    given = {**(headers or {}), **({} if key is None else {"authorization": f"Bearer {key}"})}
    scope: dict[str, Any] = {
        "type": "http",
        "path": unquote(path),  # as a server gives it
        "method": method or ("POST" if fields is not None or parts is not None else "GET"),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    await middleware(scope, receive, send)
    starts = [message for message in sent if message["type"] == "http.response.start"]
    if not starts:
        return Answer(0, {}, b"")
    assert len(starts) == 1
    assert sent[-1].get("more_body", False) is False
    found = {name.decode(): value.decode() for name, value in starts[0]["headers"]}
    return Answer(starts[0]["status"], found, b"".join(m.get("body", b"") for m in sent))


def ask(middleware: TunelineMiddleware, *args: Any, **options: Any) -> Answer:
    """`send_request` in a loop of its own."""
    return asyncio.run(send_request(middleware, *args, **options))
