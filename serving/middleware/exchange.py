"""One request and its answer: what was sent of it, so that it can be counted, logged and ended."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from serving.middleware.asgi import (
    Header,
    Message,
    Receive,
    Scope,
    Send,
    answer,
    error_body,
    header,
)
from serving.middleware.body import Refusal
from serving.middleware.cors import ALLOW_ORIGIN, EXPOSE

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_USAGE = re.compile(rb'"usage":\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_PARTS = (
    "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens",
)  # fmt: skip
"""The usage of `/v1/messages` has no total, and counts cached tokens of the prompt apart."""
ENGINE_HEADERS = (b"x-data-parallel-rank",)
"""By which vLLM sends a request to the engine that its client names, past its own balance: one
client could keep an engine busy. They do not reach it."""
_MESSAGES = "/v1/messages"
_ANTHROPIC = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
"""Types of errors that Anthropic's clients know, by status; other refusals are invalid requests."""


class Exchange:
    """A request in progress. A class, since the heartbeat ends the exchanges of a stuck engine."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Sequence[Header],
        origin: Sequence[Header] = (),
    ) -> None:
        self.started_s = time.monotonic()
        scope["headers"] = [one for one in scope["headers"] if one[0] not in ENGINE_HEADERS]
        self.request_id = _request_id(scope)
        self.key_name = "-"
        self.adapter = ""
        """The adapter at run time that answers; empty for every other model."""
        self.status = 0
        """0 until an answer begins."""
        self.is_done = False
        self.client_left = False
        self.num_events = 0
        """Messages of the answer's body."""
        self.num_tokens: int | None = None
        """Tokens of prompt and answer, as the server reports them; only if `reads_usage`."""
        self.reads_usage = False
        self.on_body: Callable[[bytes], None] | None = None
        """Called with each piece of the answer's body."""
        self.digest = ""
        """The artifact that answers; empty for the one that the server was started for."""
        self.scope = scope
        self._receive = receive
        self._send = send
        self._headers = [*headers, (b"x-request-id", self.request_id.encode())]
        self._origin = origin
        """Headers for a page of another origin; vLLM's own answers have them already."""
        self._usage: dict[str, int] = {}
        self.is_stream = False
        self._is_messages = scope["path"].startswith(_MESSAGES)
        self.is_ended = False
        self._is_sending = False

    @property
    def awaits_engine(self) -> bool:
        """Return whether the answer's next piece must come from the engine.

        A piece that the client does not read yet holds the answer back, not the engine.
        """
        return not (self.is_done or self._is_sending)

    def answered_by(self, digest: str, adapter: str = "") -> None:
        """Name the artifact that answers in a header, and an adapter in log and metrics too."""
        self.adapter, self.digest = adapter, digest
        others = [entry for entry in self._headers if entry[0] != b"x-tuneline-artifact"]
        self._headers = [(b"x-tuneline-artifact", digest.encode()), *others]

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.is_done:
            self.client_left = True
        return message

    async def send(self, message: Message) -> None:
        if self.is_ended:
            return
        if message["type"] == "http.response.body":
            self.num_events += 1
            if self.reads_usage:
                self._read_usage(message.get("body", b""))
            if self.on_body is not None:
                self.on_body(message.get("body", b""))
            self.is_done = not message.get("more_body", False)
        self._is_sending = True
        try:
            await self._deliver(message)
        finally:
            self._is_sending = False

    async def refuse(self, refusal: Refusal, headers: Sequence[Header]) -> None:
        """Answer with an error; its code is the status if it has no name."""
        body = self._error(refusal.status, refusal.kind, str(refusal), refusal.code, refusal.param)
        await answer(self.send, refusal.status, body, headers)

    def end(self, status: int, kind: str, text: str) -> None:
        """End an answer that the server does not give: with an error, or with an error event.

        The client may read nothing, so nobody waits until the error is sent.
        """
        if self.is_ended or self.is_done:
            return
        # At once: the answer's own messages must not come between those of the error.
        self.is_ended = self.is_done = True
        self._ending = asyncio.create_task(self._send_error(status, kind, text))

    async def _send_error(self, status: int, kind: str, text: str) -> None:
        if self.status == 0:
            await answer(self._deliver, status, self._error(status, kind, text))
            return
        last: Message = {"type": "http.response.body", "body": b""}
        if self.is_stream:
            event = f"data: {json.dumps(self._error(status, kind, text))}\n\n"
            # Anthropic's client passes over events without a name.
            event = f"event: error\n{event}" if self._is_messages else f"{event}data: [DONE]\n\n"
            last["body"] = event.encode()
        await self._send(last)

    def _error(
        self, status: int, kind: str, text: str, code: str | None = None, param: str | None = None
    ) -> dict[str, Any]:
        """Return an error in the shape of OpenAI's clients, or of Anthropic's for its routes."""
        body = error_body(kind, text, status if code is None else code, param)
        if self._is_messages:
            body["type"] = "error"
            body["error"]["type"] = _ANTHROPIC.get(status, "invalid_request_error")
        return body

    async def _deliver(self, message: Message) -> None:
        """Give a message to the connection, with the headers of every answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [entry for entry in message.get("headers", ()) if entry[0] != b"x-request-id"]
            self.is_stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in headers
            )
            if self._origin:
                headers.append(EXPOSE)
                if all(name != ALLOW_ORIGIN for name, _ in headers):
                    headers += self._origin
            message = {**message, "headers": [*headers, *self._headers]}
        await self._send(message)

    def _read_usage(self, body: bytes) -> None:
        """Read the usage from a piece of the answer, if the piece has it."""
        # The last one: arguments of a tool, which the model writes, come before the usage.
        if b'"usage"' not in body or not (found := _USAGE.findall(body)):
            return
        try:
            counts = json.loads(found[-1])
        except ValueError:
            counts = {}  # a model's own text in the place of a usage
        self._usage |= {name: n for name, n in counts.items() if isinstance(n, int)}
        parts = sum(self._usage.get(name, 0) for name in _PARTS)
        self.num_tokens = self._usage.get("total_tokens", parts)


def _request_id(scope: Scope) -> str:
    """Return the client's own request id, or a new one for a client that gives none.

    vLLM names its request by the header, so a new id is added to the scope.
    """
    given = header(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    fresh = secrets.token_hex(16)
    others = [entry for entry in scope["headers"] if entry[0] != b"x-request-id"]
    scope["headers"] = [*others, (b"x-request-id", fresh.encode())]
    return fresh
