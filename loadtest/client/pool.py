"""The connections of a client: opened before the start, and ahead of need while it runs."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from loadtest.client.clocks import realtime_offset_ns
from loadtest.client.connection import (
    READ_BYTES,
    Connection,
    Request,
    TlsConnection,
    monotonic_ns,
)
from loadtest.client.plan import Plan
from loadtest.client.self_check import SelfCheck
from loadtest.client.tls import TlsStream

SPARE_SHARE = 8
"""An open loop keeps one in SPARE_SHARE of its first connections idle while it has more to send. A
new connection, whose TLS handshake takes time, is then open before a request needs it."""
SPARES_PER_TICK = 4
"""A TLS handshake costs the loop time inside the window."""
SPARE_PAUSE_NS = 1_000_000_000
"""Pause after a spare that failed, or that the server closed before a request came."""


class Pool(abc.ABC):
    """Opens and keeps the connections of one client process.

    Args:
        plan: For the server's address and the number of connections.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = asyncio.get_running_loop()
        self.tls = ssl.create_default_context(cafile=plan.ca_file) if plan.tls else None
        if self.tls is not None:
            self.tls.options |= ssl.OP_NO_RENEGOTIATION  # reads answer nothing
        self.address: tuple[int, tuple[str, int]] | None = None
        self.kernel_clock = True
        self.compared_ns = monotonic_ns()
        self.clock_offsets = [(self.compared_ns, realtime_offset_ns())]
        self.pool: deque[Connection] = deque()
        """Idle connections."""
        self.connections: set[Connection] = set()
        self.num_spare = plan.num_connections // SPARE_SHARE if plan.arrivals_s is not None else 0
        self.num_spares_opening = 0
        self.next_spare_ns = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.reuses = True
        """Whether a connection carries another request after its answer."""
        # An epoll of its own: a read through the loop's epoll costs more than the read.
        self.epoll = select.epoll()
        self.readers: dict[int, Callable[[], int]] = {}
        self.check = SelfCheck([], 0.0, 0, 0, 0)
        self.arrivals_ns: list[int] = []
        self.cursor = 0
        """Arrivals that were begun."""

    @abc.abstractmethod
    def finish(self, connection: Connection, request: Request, now_ns: int) -> None:
        """Take note that a response is whole."""

    @abc.abstractmethod
    def fail(self, request: Request, reason: str, message: str) -> None:
        """Take note that a request has failed."""

    @abc.abstractmethod
    def lost(self, connection: Connection, request: Request, reason: str, message: str) -> None:
        """Take note that a connection ended under a request."""

    @abc.abstractmethod
    def counts_out(self, request: Request, data: bytes) -> bool:
        """Count the events of a client that will leave; return whether it has left now."""

    @abc.abstractmethod
    def has_next(self) -> bool:
        """Return whether a request is still to begin."""

    def release(self, connection: Connection, now_ns: int) -> None:
        """Keep a connection after its answer, if it can carry another request."""
        connection.request = None
        framer = connection.framer
        is_whole = not framer.surplus and not connection.unsent
        if self.reuses and framer.keep_alive and is_whole and not connection.is_over:
            connection.idle_since_ns = now_ns
            self.pool.append(connection)
        else:
            connection.close()
            self.connections.discard(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection and forget it."""
        connection.request = None
        connection.close()
        self.connections.discard(connection)
        with contextlib.suppress(ValueError):
            self.pool.remove(connection)
            if connection.idle_since_ns is None:
                # One that never carried a request would only be closed again.
                self.next_spare_ns = monotonic_ns() + SPARE_PAUSE_NS
            elif self.has_next() and self.num_spares_opening < SPARES_PER_TICK:
                self.begin_spare()

    async def open_pool(self) -> None:
        """Open the connections that the start needs. A refusal is met again by the requests."""
        plan = self.plan
        infos = await self.loop.getaddrinfo(plan.host, plan.port, type=socket.SOCK_STREAM)
        # A name may resolve to ::1 first while the server listens only on 127.0.0.1.
        for family, _, _, _, address in infos:
            self.address = (family, address[:2])  # type: ignore[assignment]
            with contextlib.suppress(OSError, TimeoutError):
                self.pool.append(await self.connect())
                break
        gate = asyncio.Semaphore(64)

        async def one() -> None:
            async with gate:
                with contextlib.suppress(OSError, TimeoutError):
                    self.pool.append(await self.connect())

        await asyncio.gather(*(one() for _ in range(plan.num_connections - len(self.pool))))

    def close_pool(self) -> None:
        """Close the connections that wait for the start."""
        for connection in self.pool:
            connection.close()
            self.connections.discard(connection)
        self.pool.clear()

    async def connect(self) -> Connection:
        assert self.address is not None  # noqa: S101 (open_pool resolves it)
        family, address = self.address
        connection: Connection
        async with asyncio.timeout(min(self.plan.timeout_s, 10.0)):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self.loop.sock_connect(sock, address)
                if self.tls is None:
                    connection = Connection(self, sock)
                else:
                    stream = await self.shake_hands(sock, self.tls)
                    connection = TlsConnection(self, sock, stream)
            except BaseException:
                sock.close()
                raise
        self.connections.add(connection)
        return connection

    async def shake_hands(self, sock: socket.socket, context: ssl.SSLContext) -> TlsStream:
        """Do the TLS handshake.

        Raises:
            OSError: The handshake fails; ssl.SSLError is one.
        """
        stream = TlsStream(context, self.plan.host)
        done, data = stream.shake_hands()
        while True:
            if data:
                await self.loop.sock_sendall(sock, data)
            if done:
                return stream
            data = await self.loop.sock_recv(sock, READ_BYTES)
            if not data:
                raise ConnectionResetError("the server closed the connection in the TLS handshake")
            done, data = stream.shake_hands(data)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def watch(self, sock: socket.socket, reader: Callable[[], int]) -> None:
        # By edges: by levels, the kernel looks at each socket once more after its read.
        self.epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        self.readers[sock.fileno()] = reader

    def unwatch(self, sock: socket.socket) -> None:
        self.epoll.unregister(sock)
        del self.readers[sock.fileno()]

    def keep_spares(self) -> None:
        """Open connections before a longer queue of an open loop needs them."""
        num_left = len(self.arrivals_ns) - self.cursor
        wanted = min(self.num_spare, num_left) - len(self.pool) - self.num_spares_opening
        for _ in range(min(wanted, SPARES_PER_TICK)):
            self.begin_spare()

    def begin_spare(self) -> None:
        if not self.stopping and monotonic_ns() >= self.next_spare_ns:
            self.num_spares_opening += 1
            self.spawn(self.open_spare())

    async def open_spare(self) -> None:
        """Open another idle connection; if that fails, a request meets the failure."""
        try:
            self.pool.appendleft(await self.connect())
            self.check.num_spares_opened += 1
        except (OSError, TimeoutError):
            self.next_spare_ns = monotonic_ns() + SPARE_PAUSE_NS
        finally:
            self.num_spares_opening -= 1
