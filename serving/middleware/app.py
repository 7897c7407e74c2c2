"""Tuneline's part of vLLM's server: `--middleware serving.middleware.TunelineMiddleware`.

- `/ready`: 200 while it serves, 503 from the moment SIGTERM arrives. vLLM's own `/health` stays 200
  until the process is gone, so a load balancer would go on sending.
- A drain refuses new work with 503 and `Retry-After`; vLLM answers 500.
- Paths without a row in `routes.py` do not exist. vLLM's key guards only `/v1`: without the list,
  `/invocations` answers prompts and `/adapters` loads weights, for anyone.
- Metrics of our own on vLLM's `/metrics` page.

This package needs only the standard library and prometheus-client, and an image copies it whole. It
reads what it serves from `TUNELINE_*` variables, so it runs alike below `tuneline serve` and as the
first process of a container.
"""

from __future__ import annotations

import os

from serving.middleware.asgi import App, Message, Receive, Scope, Send, answer, refuse
from serving.middleware.drain import call_on_sigterm
from serving.middleware.metrics import (
    ARTIFACT_INFO,
    DRAINING,
    READY_SECONDS,
    RESTARTS,
    counted_send,
    process_age_s,
)
from serving.middleware.routes import ROUTES

RETRY_AFTER_S = 5


class TunelineMiddleware:
    """ASGI middleware; vLLM builds one per front-end process, around everything of its own."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.draining = False
        ARTIFACT_INFO.labels(
            name=os.environ.get("TUNELINE_ARTIFACT_NAME", ""),
            kind=os.environ.get("TUNELINE_ARTIFACT_KIND", ""),
            digest=os.environ.get("TUNELINE_ARTIFACT_DIGEST", ""),
        ).set(1)
        DRAINING.set(0)
        RESTARTS.inc(int(os.environ.get("TUNELINE_RESTARTS", "0")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._at_start(send))
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def drain(self) -> None:
        """From now on refuse new work; what is in progress goes on."""
        self.draining = True
        DRAINING.set(1)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        route = ROUTES.get(path)
        send = counted_send(send, "other" if route is None else path)
        if route is None:
            message = f"Unknown route: {scope['method']} {path}"
            await refuse(send, 404, "NotFoundError", message)
        elif path == "/ready" and not self.draining:
            await answer(send, 200, {"status": "ready"})
        elif self.draining and (route.is_work or path == "/ready"):
            message = "This server is shutting down; ask again and another one answers."
            await refuse(send, 503, "ServiceUnavailableError", message, RETRY_AFTER_S)
        else:
            await self.app(scope, receive, send)

    def _at_start(self, send: Send) -> Send:
        async def started(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                call_on_sigterm(self.drain)
                READY_SECONDS.set(process_age_s())
            await send(message)

        return started
