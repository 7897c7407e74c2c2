"""The types of ASGI, and answers of our own in the shapes that clients know."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

RETRY_AFTER_S = 5.0
"""When a client may ask again that this server cannot answer now."""


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header's value; `name` is in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def error_body(
    kind: str, message: str, code: str | int | None = None, param: str | None = None
) -> dict[str, Any]:
    """Return an error in OpenAI's shape, which clients turn into their own exceptions."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def answer(
    send: Send, status: int, body: dict[str, Any], headers: Sequence[Header] = ()
) -> None:
    """Send a JSON document."""
    content = json.dumps(body).encode()
    length = (b"content-length", b"%d" % len(content))
    start = [(b"content-type", b"application/json"), length, *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": content})


def retry_after(seconds: float) -> Header:
    """Return the header; whole seconds, rounded up."""
    return (b"retry-after", b"%d" % max(1, -int(-seconds // 1)))
