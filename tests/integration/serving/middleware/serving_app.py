"""uvicorn on loopback, and an app of known answers that plays vLLM.

`python -m tests.integration.serving.middleware.serving_app HTTP` serves it through the middleware
with a life span, and prints the port.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import generate_latest

from serving.middleware.app import TunelineMiddleware
from serving.middleware.asgi import Receive, Scope, Send, answer, error_body


class Known:
    """Plays vLLM: it answers with the model's name, the question and the number of messages."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.num_left = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        if scope["path"] == "/metrics":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": generate_latest()})
            return
        if scope["path"] == "/v1/models":
            names = ("tuned", "base")
            await answer(send, 200, {"data": [{"id": name, "root": ""} for name in names]})
            return
        fields = json.loads((await receive())["body"])
        if "messages" not in fields:
            await answer(send, 200, {})  # the middleware's own request
            return
        self.bodies.append(fields)
        question = fields["messages"][-1]["content"]
        if question == "refuse":
            why = "This prompt is <b>too</b> long."
            await answer(send, 400, error_body("BadRequestError", why, 400))
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if question == "think":
            await _event(send, {"choices": [{"delta": {"reasoning": "Two and two"}}]})
        words = [fields["model"], " saw ", str(len(fields["messages"])), f": {question}"]
        for word in words:
            await _event(send, {"choices": [{"delta": {"content": word}}]})
        if question == "wait":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.num_left += 1
            return
        if question == "break":
            await send({"type": "http.response.body", "body": b""})
            return
        await _event(send, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        await _event(send, {"choices": [], "usage": {"completion_tokens": 4}})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _event(send: Send, event: dict[str, Any]) -> None:
    # Two parts, so that an event arrives in pieces.
    text = f"data: {json.dumps(event)}\n\n".encode()
    for part in (text[:9], text[9:]):
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0.002)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an app with uvicorn on a free port, and give its address."""
    import uvicorn

    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline_s and thread.is_alive()
        time.sleep(0.01)  # polls for the start; nothing is timed by it
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


async def main(http: Any) -> None:
    """Serve until SIGTERM."""
    import uvicorn

    app = TunelineMiddleware(Known())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=http, lifespan="on", log_level="error")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)  # polls for the start; nothing is timed by it
        print(listener.getsockname()[1], flush=True)
        await task


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
