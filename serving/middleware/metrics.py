"""Metrics of our own on vLLM's `/metrics` page."""

from __future__ import annotations

import os
import time

from prometheus_client import Counter, Gauge

from serving.middleware.asgi import Message, Send

# Gauges and counters with labels, no Info and no collector: only these work when several
# front-end processes share one /metrics page through files.
ARTIFACT_INFO = Gauge(
    "tuneline_artifact_info",
    "The served artifact: its name, kind and digest. Always 1.",
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


def counted_send(send: Send, route: str) -> Send:
    """Return `send`, counting the answer to a request for `route`."""

    async def counted(message: Message) -> None:
        if message["type"] == "http.response.start":
            REQUESTS.labels(route=route, status=str(message["status"])).inc()
        await send(message)

    return counted


def process_age_s() -> float:
    """Return the seconds since the kernel started this process (field 22 of proc_pid_stat(5))."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        # The second field is the name in parentheses, which may itself hold spaces and parentheses.
        start_ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")
