"""What Tuneline adds inside vLLM's server, by `--middleware serving.middleware.TunelineMiddleware`.

- `/ready`: 200 while it serves, 503 from the moment SIGTERM arrives. vLLM's own `/health` stays 200
  until the process is gone, so a load balancer would go on sending.
- New work that arrives during the drain is refused with 503 and `Retry-After`; vLLM answers 500.
- Routes off the list below do not exist. vLLM's key guards `/v1` alone: `/invocations` would answer
  prompts, and `/adapters` load weights, for anyone.
- Metrics of our own on vLLM's `/metrics` page.

It needs the standard library and prometheus-client alone and reads what it serves from `TUNELINE_*`
variables, so it runs alike below `tuneline serve` and as the first process of a container.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, MutableMapping
from types import FrameType
from typing import Any

from prometheus_client import Counter, Gauge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WORK = frozenset({"/v1/chat/completions", "/v1/completions"})
ROUTES = WORK | {"/v1/models", "/health", "/ready", "/metrics", "/version"}

RETRY_AFTER_S = 5

# Gauges and counters with labels, no Info and no collector: these alone also work when several
# front-end processes share one /metrics page through files.
ARTIFACT_INFO = Gauge(
    "tuneline_artifact_info",
    "What is served: its name, the artifact's kind and digest. Always 1.",
    ["name", "kind", "digest"],
    multiprocess_mode="max",
)
READY_SECONDS = Gauge(
    "tuneline_ready_seconds",
    "Seconds from the start of the process until it accepted requests.",
    multiprocess_mode="max",
)
DRAINING = Gauge(
    "tuneline_draining", "1 from SIGTERM until the process ends.", multiprocess_mode="max"
)
RESTARTS = Counter(
    "tuneline_restarts", "Times that the supervisor has started this server again after a crash."
)
REQUESTS = Counter(
    "tuneline_http_requests",
    "Requests answered, by route and status; routes that do not exist count as other.",
    ["route", "status"],
)


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
        send = _counted(send, path if path in ROUTES else "other")
        if path not in ROUTES:
            message = f"Unknown route: {scope['method']} {path}"
            await _refuse(send, 404, "NotFoundError", message)
        elif path == "/ready" and not self.draining:
            await _answer(send, 200, {"status": "ready"})
        elif self.draining and (path in WORK or path == "/ready"):
            message = "This server is shutting down; ask again and another one answers."
            await _refuse(send, 503, "ServiceUnavailableError", message, RETRY_AFTER_S)
        else:
            await self.app(scope, receive, send)

    def _at_start(self, send: Send) -> Send:
        async def started(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._listen_for_sigterm()
                READY_SECONDS.set(_process_age_s())
            await send(message)

        return started

    def _listen_for_sigterm(self) -> None:
        """Hear SIGTERM before vLLM's own handler does, and hand it on.

        An event loop runs its handlers from a wake-up descriptor that the C-level handler writes to
        whatever Python function is installed, so putting one in front takes nothing from it. Two
        loops differ in what that function was; calling it keeps both right.
        """
        before = signal.getsignal(signal.SIGTERM)

        def on_sigterm(number: int, frame: FrameType | None) -> None:
            self.drain()
            if callable(before):
                before(number, frame)

        signal.signal(signal.SIGTERM, on_sigterm)
        signal.siginterrupt(signal.SIGTERM, False)


def _counted(send: Send, route: str) -> Send:
    async def counted(message: Message) -> None:
        if message["type"] == "http.response.start":
            REQUESTS.labels(route=route, status=str(message["status"])).inc()
        await send(message)

    return counted


async def _refuse(
    send: Send, status: int, kind: str, message: str, retry_after_s: int | None = None
) -> None:
    """An error in the shape of OpenAI's, which clients turn into their own exceptions."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    await _answer(send, status, body, retry_after_s)


async def _answer(
    send: Send, status: int, body: dict[str, Any], retry_after_s: int | None = None
) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _process_age_s() -> float:
    """Seconds since the kernel started this process (field 22 of proc_pid_stat(5))."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        # The second field is the name in parentheses, which may itself hold spaces and parentheses.
        start_ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")
