"""Connections that send no whole request, or read no answer, are closed, and so are those that send
too much.

uvicorn closes a connection that idles after an answer. A connection that never sends a request, or
only half of its header, stays open for ever and holds a descriptor. So does a connection whose
client reads nothing, with a request in flight and the memory of its answer. ASGI does not show
connections, so uvicorn's protocol is asked to record them.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import importlib
import sys
import termios
import time
import weakref
from typing import Any

from serving.middleware.metrics import IDLE_CLOSED, UNREAD_CLOSED
from serving.middleware.settings import Settings

INTERVAL_S = 1.0
MAX_HEADER_BYTES = 64 * 1024
"""Bytes of a request's line and header. uvicorn's parser joins the pieces of a long one anew with
each piece: one of megabytes holds the loop of the whole server."""
MAX_HEADERS = 1000
"""A short header takes a hundred times its bytes in memory."""
MAX_FRAMING = 4
"""Bytes on the wire for a byte of a body: a body in chunks has more than its own, and trailers."""
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
        self._unread_since_s: weakref.WeakKeyDictionary[Any, tuple[tuple[int, int], float]] = (
            weakref.WeakKeyDictionary()
        )
        """By connection with bytes that the kernel does not take: how many bytes wait here and in
        the kernel, and since when it is this many."""
        self._received: weakref.WeakKeyDictionary[Any, tuple[Any, int]] = (
            weakref.WeakKeyDictionary()
        )
        """By connection: the scope of the request that arrives, and its bytes so far."""

    def record(self, settings: Settings) -> bool:
        """Record the connections that uvicorn accepts from now on; False without uvicorn."""
        found = False
        for module, name in PROTOCOLS:
            try:
                protocol = getattr(importlib.import_module(module), name)
            except ImportError:
                continue  # httptools is optional
            found = True
            protocol.connection_made = self._recorded(protocol.connection_made)
            if name == "HttpToolsProtocol":  # the other parser has a limit of its own
                protocol.data_received = self._limited(
                    protocol.data_received, settings.max_body_bytes
                )
        return found

    async def watch(self, settings: Settings) -> None:
        """Close idle and unread connections for as long as the server runs."""
        header_s, send_s = settings.header_timeout_s, settings.send_timeout_s
        while True:
            await asyncio.sleep(min(INTERVAL_S, header_s / 2, send_s / 2))
            UNREAD_CLOSED.inc(self.close_unread(time.monotonic(), send_s))
            IDLE_CLOSED.inc(self.close_idle(time.monotonic(), header_s))

    def close_idle(self, now_s: float, timeout_s: float) -> int:
        """Close the connections that have had no whole request for `timeout_s`, and count them.

        A connection counts as idle from the first call that sees it so.
        """
        closed = 0
        for connection, since_s in list(self._idle_since_s.items()):
            cycle, transport = connection.cycle, connection.transport
            if transport is None or _is_gone(transport):
                del self._idle_since_s[connection]
            elif transport.is_closing():
                continue  # it waits until its client has read the last bytes
            elif cycle is not None and not cycle.response_complete:
                self._idle_since_s[connection] = None
            elif since_s is None:
                self._idle_since_s[connection] = now_s
            elif now_s - since_s >= timeout_s:
                transport.close()
                closed += 1
        return closed

    def close_unread(self, now_s: float, timeout_s: float) -> int:
        """Close the connections whose client has taken no byte for `timeout_s`, and count them."""
        closed = 0
        for connection in list(self._idle_since_s):
            transport = connection.transport
            size = 0 if transport is None else transport.get_write_buffer_size()
            if size == 0:
                self._unread_since_s.pop(connection, None)
                continue
            unread = size, _unread_by_kernel(transport)
            before, since_s = self._unread_since_s.get(connection, (None, now_s))
            if unread != before:
                self._unread_since_s[connection] = unread, now_s
            elif now_s - since_s >= timeout_s:
                transport.abort()  # `close` would wait for the client
                closed += 1
        return closed

    def has_unsent(self) -> bool:
        """Return whether bytes of an answer wait in this process for their client."""
        transports = [connection.transport for connection in list(self._idle_since_s)]
        return any(one is not None and one.get_write_buffer_size() > 0 for one in transports)

    def _recorded(self, made: Any) -> Any:
        @functools.wraps(made)
        def connection_made(connection: Any, transport: Any) -> None:
            made(connection, transport)
            self._idle_since_s[connection] = None

        return connection_made

    def _limited(self, received: Any, max_body_bytes: int) -> Any:
        """Bound a request's header, and its body with chunks and trailers around it."""
        most = MAX_HEADER_BYTES + MAX_FRAMING * max_body_bytes

        @functools.wraps(received)
        def data_received(connection: Any, data: bytes) -> None:
            received(connection, data)
            scope = connection.scope
            before, size = self._received.get(connection, (None, 0))
            size = len(data) + (size if scope is before else 0)
            self._received[connection] = scope, size
            # The parser sets a path when the header is complete.
            is_header = scope is not None and "path" not in scope
            num_headers = len(connection.headers or ())  # with trailers
            if size > (MAX_HEADER_BYTES if is_header else most) or num_headers > MAX_HEADERS:
                connection.transport.abort()

        return data_received


def _is_gone(transport: Any) -> bool:
    return bool(transport.is_closing() and transport.get_write_buffer_size() == 0)


def _unread_by_kernel(transport: Any) -> int:
    """Return the bytes that the kernel has taken and that wait for the client's side.

    The kernel takes more only when a third of its megabytes is free, so a slow client moves the
    number of bytes that wait here in leaps of minutes.
    """
    try:
        number = fcntl.ioctl(
            transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0" * 4
        )
    except (OSError, ValueError):
        return 0  # the connection has just ended
    return int.from_bytes(number, sys.byteorder)
