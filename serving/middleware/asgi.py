"""The types of ASGI, and answers of our own in the shapes that clients know."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def refuse(
    send: Send, status: int, kind: str, message: str, retry_after_s: int | None = None
) -> None:
    """Send an error in OpenAI's shape, which clients turn into their own exceptions."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    await answer(send, status, body, retry_after_s)


async def answer(
    send: Send, status: int, body: dict[str, Any], retry_after_s: int | None = None
) -> None:
    """Send a JSON document."""
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
