"""Requests of the middleware's own to vLLM's routes, inside the process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from serving.middleware.asgi import App, Message, Scope


async def call_inner(
    app: App, given: Scope, path: str, fields: Mapping[str, Any] | None
) -> tuple[int, bytes]:
    """Return status and body of a request to vLLM.

    Args:
        given: The parts of the scope that the server sets, and vLLM's key as `headers`.
        fields: The body of a POST; None is a GET.
    """
    content = b"" if fields is None else json.dumps(fields).encode()
    scope: Scope = {
        **given,
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1",
        "method": "GET" if fields is None else "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "client": ("127.0.0.1", 0), "server": None,
        "headers": [
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)),
            *given["headers"],
        ],
    }  # fmt: skip
    is_given, status, parts = False, 500, []

    async def receive() -> Message:
        nonlocal is_given
        if is_given:
            await asyncio.Event().wait()  # the connection stays open
        is_given = True
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)


def words_of(body: bytes) -> str:
    """Return the message of an error of vLLM, on one line."""
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode("utf-8", "replace")
    return " ".join(message.split())[:500]
