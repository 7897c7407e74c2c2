"""The server's end of `kubectl port-forward`: SPDY/3.1 frames over an upgraded connection.

kubectl opens two streams for each connection, one for errors and one for data. It ends the stream
of errors at once and sends data on the other, so the first data on a stream opens the connection to
the backend, and no header has to be read. The headers of an answer are compressed without a
dictionary, which every reader of zlib takes.
"""

from __future__ import annotations

import socket
import struct
import threading
import zlib

SYN_STREAM, SYN_REPLY, PING, GOAWAY = 1, 2, 6, 7
FIN = 1
CONTROL = 0x8000_0000 | (3 << 16)


class Tunnel:
    """One port-forward: streams of a client's connection, each joined to a backend's."""

    def __init__(
        self, client: socket.socket, backend_port: int, max_connections: int | None
    ) -> None:
        self.client = client
        self.backend_port = backend_port
        self.max_connections = max_connections
        self.num_connections = 0
        self.backends: dict[int, socket.socket] = {}
        self.lock = threading.Lock()
        self.compressor = zlib.compressobj()

    def serve(self) -> None:
        """Serve until the client goes, or until the tunnel has had its connections."""
        try:
            while True:
                first, second = struct.unpack(">II", self._read(8))
                payload = self._read(second & 0xFF_FFFF)
                if first & 0x8000_0000:
                    if not self._control(first & 0xFFFF, payload):
                        return
                elif not self._data(first, second >> 24, payload):
                    return
        except (OSError, EOFError):
            return
        finally:
            for backend in self.backends.values():
                backend.close()
            self.client.close()

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = self.client.recv(size - len(found))
            if not part:
                raise EOFError
            found += part
        return found

    def _control(self, kind: int, payload: bytes) -> bool:
        if kind == SYN_STREAM:
            stream = payload[:4]
            with self.lock:
                pairs = self.compressor.compress(struct.pack(">I", 0))
                pairs += self.compressor.flush(zlib.Z_SYNC_FLUSH)
                self._send_locked(CONTROL | SYN_REPLY, 0, stream + pairs)
        elif kind == PING:
            with self.lock:
                self._send_locked(CONTROL | PING, 0, payload)
        return kind != GOAWAY

    def _data(self, stream: int, flags: int, payload: bytes) -> bool:
        if payload:
            if stream not in self.backends:
                if self.num_connections == self.max_connections:
                    return False
                self.num_connections += 1
                backend = socket.create_connection(("127.0.0.1", self.backend_port), timeout=20)
                self.backends[stream] = backend
                threading.Thread(target=self._answer, args=(stream, backend), daemon=True).start()
            self.backends[stream].sendall(payload)
        if flags & FIN and stream in self.backends:
            self.backends[stream].shutdown(socket.SHUT_WR)
        return True

    def _answer(self, stream: int, backend: socket.socket) -> None:
        try:
            while data := backend.recv(65536):
                with self.lock:
                    self._send_locked(stream, 0, data)
            with self.lock:
                self._send_locked(stream, FIN, b"")
        except OSError:
            return

    def _send_locked(self, first: int, flags: int, payload: bytes) -> None:
        self.client.sendall(struct.pack(">II", first, flags << 24 | len(payload)) + payload)
