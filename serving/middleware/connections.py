"""Connections that send no whole request are closed.

uvicorn closes a connection that idles after an answer. A connection that never sends a request, or
only half of its header, stays open for ever and holds a descriptor. ASGI does not show connections,
so uvicorn's protocol is asked to record them.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import time
import weakref
from typing import Any

from serving.middleware.metrics import IDLE_CLOSED

INTERVAL_S = 1.0
PROTOCOLS = (
    ("uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol"),
    ("uvicorn.protocols.http.h11_impl", "H11Protocol"),
)


class Connections:
    """The open connections of this process, each with the time since which it has no request."""

    def __init__(self) -> None:
        self._idle_since_s: weakref.WeakKeyDictionary[Any, float | None] = (
            weakref.WeakKeyDictionary()
        )

    def record(self) -> bool:
        """Record the connections that uvicorn accepts from now on; False without uvicorn."""
        found = False
        for module, name in PROTOCOLS:
            try:
                protocol = getattr(importlib.import_module(module), name)
            except ImportError:
                continue  # httptools is optional
            found = True
            protocol.connection_made = self._recorded(protocol.connection_made)
        return found

    async def watch(self, timeout_s: float) -> None:
        """Close idle connections for as long as the server runs."""
        while True:
            await asyncio.sleep(min(INTERVAL_S, timeout_s / 2))
            IDLE_CLOSED.inc(self.close_idle(time.monotonic(), timeout_s))

    def close_idle(self, now_s: float, timeout_s: float) -> int:
        """Close the connections that have had no whole request for `timeout_s`, and count them.

        A connection counts as idle from the first call that sees it so.
        """
        closed = 0
        for connection, since_s in list(self._idle_since_s.items()):
            cycle, transport = connection.cycle, connection.transport
            if transport is None or transport.is_closing():
                del self._idle_since_s[connection]
            elif cycle is not None and not cycle.response_complete:
                self._idle_since_s[connection] = None
            elif since_s is None:
                self._idle_since_s[connection] = now_s
            elif now_s - since_s >= timeout_s:
                del self._idle_since_s[connection]
                transport.close()
                closed += 1
        return closed

    def _recorded(self, made: Any) -> Any:
        @functools.wraps(made)
        def connection_made(connection: Any, transport: Any) -> None:
            made(connection, transport)
            self._idle_since_s[connection] = None

        return connection_made
