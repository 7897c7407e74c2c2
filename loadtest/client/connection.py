"""Connections that keep every read with its time, with and without TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Protocol

from loadtest.client.answer_limit import READ_COST_BYTES, num_kept
from loadtest.client.http1 import Framer, ProtocolError
from loadtest.client.tls import TlsStream

READ_BYTES = 16384
SO_TIMESTAMPNS = 35
ANCILLARY_BYTES = socket.CMSG_SPACE(16)
TIMESPEC = struct.Struct("@qq")

STALE_AFTER_NS = 1_000_000_000
"""The server may close a connection that was never used for longer while the client sends."""
RESEND_WITHIN_NS = 50_000_000
"""A server that closes a connection while the client sends has not read the request. The client
sees this after about one round trip. A later close drops a request that the server had."""
CLOSES_WITHIN_NS = 100_000_000
"""A server that closes a used connection this soon after its last answer closes it after each."""

monotonic_ns = time.monotonic_ns


Read = tuple[int, bytes | None, bytes]
"""When the user's clock saw it, the kernel's own stamp (a timespec of CLOCK_REALTIME), the bytes.
The stamp is decoded after the window."""


class Request:
    """One request while it runs. Times are monotonic nanoseconds."""

    __slots__ = (
        "closed", "connect_ns", "connection", "end_ns", "error", "events_left", "index",
        "intended_ns", "message", "reads", "resent", "room_bytes", "sent_ns",
    )  # fmt: skip

    def __init__(self, index: int, intended_ns: int, room_bytes: int) -> None:
        self.index = index
        self.intended_ns = intended_ns
        self.room_bytes = room_bytes
        """Bytes that its answer may still take in memory."""
        self.sent_ns: int | None = None
        self.connect_ns = 0
        """How long it waited for a connection of its own before it was sent."""
        self.end_ns: int | None = None
        self.reads: list[Read] = []
        self.error: str | None = None
        self.message = ""
        self.closed = False
        self.resent = False
        self.connection: Connection | None = None
        self.events_left: int | None = None
        """Events after which the client leaves; None for a client that stays."""


class Owner(Protocol):
    """The client's side of a connection: the calls that a connection makes."""

    loop: asyncio.AbstractEventLoop
    kernel_clock: bool

    def watch(self, sock: socket.socket, reader: Callable[[], int]) -> None: ...

    def unwatch(self, sock: socket.socket) -> None: ...

    def finish(self, connection: Connection, request: Request, now_ns: int) -> None: ...

    def fail(self, request: Request, reason: str, message: str) -> None: ...

    def lost(self, connection: Connection, request: Request, reason: str, message: str) -> None: ...

    def counts_out(self, request: Request, data: bytes) -> bool: ...

    def drop(self, connection: Connection) -> None: ...


class Connection:
    """One TCP connection, idle in the pool or carrying one request; read with `recvmsg`, for the
    kernel's receive time."""

    def __init__(self, client: Owner, sock: socket.socket) -> None:
        self.client = client
        self.sock = sock
        self.receive = sock.recvmsg
        self.framer = Framer()
        self.request: Request | None = None
        self.opened_ns = monotonic_ns()
        self.idle_since_ns: int | None = None
        """None until it has carried a request."""
        self.is_open = True
        self.is_over = False
        """The peer has said that it sends nothing more."""
        self.unsent = b""
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        except OSError:
            client.kernel_clock = False
        client.watch(sock, self.readable)

    def readable(self) -> int:
        """Read once; return the number of bytes, 0 at the end or if there are none."""
        try:
            data, ancillary, _, _ = self.receive(READ_BYTES, ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self.ended("connection_reset", str(error))
            return 0
        now_ns = monotonic_ns()
        if not data:
            self.ended("closed", "the server closed the connection")
            return 0
        self.arrived(data, ancillary[0][2] if ancillary else None, now_ns)
        return len(data)

    def deliver(self, data: bytes, stamp: bytes | None, now_ns: int) -> None:
        """Take the bytes of a response."""
        request = self.request
        if request is None:
            self.client.drop(self)  # bytes that nobody asked for
            return
        request.reads.append((now_ns, stamp, data))
        request.room_bytes -= len(data) + READ_COST_BYTES
        if request.room_bytes < 0:
            num_bytes = sum(len(one) for _, _, one in request.reads)
            del request.reads[num_kept(request.reads) :]
            self.client.fail(request, "answer_too_long", f"no end after {num_bytes / 1e6:.3g} MB")
            return
        if request.events_left is not None and self.client.counts_out(request, data):
            return
        try:
            if self.framer.feed(data):
                self.client.finish(self, request, now_ns)
        except ProtocolError as error:
            self.client.fail(request, "protocol_error", str(error))

    arrived = deliver
    """Takes bytes as they came from the network."""

    def ended(self, reason: str, message: str) -> None:
        """Tell the request, or the client, that the peer is gone."""
        request = self.request
        if request is None:
            self.client.drop(self)
        else:
            self.client.lost(self, request, reason, message)

    def send(self, data: bytes) -> None:
        """Write a whole request, and note when."""
        # Before the call: the kernel may let the server run before it lets us look at the clock.
        now_ns = monotonic_ns()
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.ended("connection_reset", str(error))
            return
        if sent < len(data):
            self.unsent = data[sent:]
            self.client.loop.add_writer(self.sock, self.writable)
        else:
            self.sent(now_ns)

    def writable(self) -> None:
        now_ns = monotonic_ns()
        try:
            sent = self.sock.send(self.unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.ended("connection_reset", str(error))
            return
        self.unsent = self.unsent[sent:]
        if not self.unsent:
            self.client.loop.remove_writer(self.sock)
            self.sent(now_ns)

    def sent(self, now_ns: int) -> None:
        """Note the time of the first sending; a request that is sent again keeps it."""
        if self.request is not None and self.request.sent_ns is None:
            self.request.sent_ns = now_ns

    def was_closed_unread(self, begun_ns: int, now_ns: int) -> bool:
        """Return whether the server may have closed an idle connection while the client sent.

        Args:
            begun_ns: When the client sent the request.
            now_ns: When the client sees that the connection is closed.
        """
        is_stale = self.idle_since_ns is not None or begun_ns - self.opened_ns > STALE_AFTER_NS
        return is_stale and now_ns - begun_ns <= RESEND_WITHIN_NS

    def idled_long(self, begun_ns: int) -> bool:
        """Return whether no answer ended on the connection shortly before `begun_ns`."""
        return self.idle_since_ns is None or begun_ns - self.idle_since_ns >= CLOSES_WITHIN_NS

    def close(self) -> None:
        """Let go of it; called again it does nothing."""
        if self.is_open:
            self.is_open = False
            self.client.unwatch(self.sock)
            self.client.loop.remove_writer(self.sock)
            self.sock.close()


class TlsConnection(Connection):
    """A connection whose bytes are TLS, the handshake done."""

    def __init__(self, client: Owner, sock: socket.socket, stream: TlsStream) -> None:
        super().__init__(client, sock)
        self.stream = stream

    def arrived(self, data: bytes, stamp: bytes | None, now_ns: int) -> None:
        try:
            plain, self.is_over = self.stream.decrypt(data)
        except ssl.SSLError as error:
            self.ended("connection_reset", f"TLS failed: {error.reason}")
            return
        if plain:
            self.deliver(plain, stamp, now_ns)
        if self.is_over and self.is_open:
            self.ended("closed", "the server closed the connection")

    def send(self, data: bytes) -> None:
        super().send(self.stream.encrypt(data))
