"""Where an HTTP/1.1 response ends, byte by byte and without looking into it. Pure.

The client needs no more than the end of a response while it measures. The same state machine runs
again afterwards, with a sink, to take the body apart.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MAX_HEAD_BYTES = 65536
MAX_LENGTH_DIGITS = 18

_SIZE, _DATA, _DATA_END, _TRAILER, _HEAD, _LENGTH, _UNTIL_CLOSE, _DONE = range(8)
_CHUNKED = _TRAILER  # the largest of the states inside a chunked body


class ProtocolError(Exception):
    """The peer does not speak HTTP/1.1. Stays inside this package: it becomes an error class."""


_is_size = re.compile(rb"[0-9a-fA-F]{1,15}").fullmatch


@functools.lru_cache(1024)
def _chunk_size(line: bytes) -> int:
    """Return the number in a size line; a server's chunks have few sizes.

    Raises:
        ProtocolError: There is no number.
    """
    size = line.partition(b";")[0].strip()
    if not _is_size(size):
        raise ProtocolError(f"chunk size {line[:20]!r}")
    return int(size, 16)


@functools.cache
def size_line(num_bytes: int) -> bytes:
    """Return the size line of a chunk with `num_bytes` in total, as servers commonly write it.

    If no chunk has that size, or the chunk would be empty, return a line longer than `num_bytes`,
    which matches no read.
    """
    for num_digits in range(1, 9):
        line = b"%x\r\n" % max(num_bytes - num_digits - 4, 0)
        if len(line) == num_digits + 2 and line != b"0\r\n":
            return line
    return bytes(num_bytes + 1)


@dataclass(frozen=True, slots=True)
class _Head:
    """Status line and headers, and what they say of the body."""

    status: int
    headers: Mapping[bytes, bytes]
    keep_alive: bool
    state: int
    """The framer's state after the head."""
    num_bytes: int
    """Of a measured body."""


@functools.lru_cache(64)
def _read_head(head: bytes) -> _Head:
    """Return what a head says; one server's heads differ in little, and seldom.

    Raises:
        ProtocolError: It is not a response's head.
    """
    lines = head.split(b"\r\n")
    parts = lines[0].split(b" ", 2)
    if len(parts) < 2 or not (parts[1].isdigit() and len(parts[1]) == 3):
        raise ProtocolError(f"expected a status line, found {lines[0][:60]!r}")
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon:
            raise ProtocolError(f"expected a header, found {line[:60]!r}")
        headers[name.strip().lower()] = value.strip()
    status = int(parts[1])
    options = {one.strip() for one in headers.get(b"connection", b"").lower().split(b",")}
    keep_alive = b"close" not in options and parts[0] != b"HTTP/1.0"
    state, num_bytes = _HEAD, 0
    if status in (204, 304):
        state = _DONE
    elif status < 200:
        pass  # an interim response is followed by the real one
    elif b"chunked" in headers.get(b"transfer-encoding", b"").lower():
        state = _SIZE
    elif b"content-length" in headers:
        length = headers[b"content-length"]
        if not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
            raise ProtocolError(f"content-length is {length[:20]!r}")
        num_bytes = int(length)
        state = _LENGTH if num_bytes else _DONE
    else:
        keep_alive = False
        state = _UNTIL_CLOSE
    return _Head(status, MappingProxyType(headers), keep_alive, state, num_bytes)


class Framer:
    """Reads one response (RFC 9112): status, headers, and a chunked, measured or closed body."""

    __slots__ = ("_buffer", "_left", "_state", "headers", "keep_alive", "status", "surplus")

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[bytes, bytes] = {}
        self.keep_alive = True
        self.surplus = False
        """Bytes came after the end of the response: the connection cannot be trusted."""
        self._state = _HEAD
        self._buffer = b""
        self._left = 0

    @property
    def complete(self) -> bool:
        return self._state == _DONE

    @property
    def is_delimited(self) -> bool:
        """The body says where it ends; otherwise only the end of the connection does."""
        return b"content-length" in self.headers or b"transfer-encoding" in self.headers

    @property
    def between_chunks(self) -> bool:
        """Inside a chunked body, with the next chunk's size to come."""
        return self._state == _SIZE and not self._buffer

    @property
    def begun(self) -> bool:
        return self._state != _HEAD or bool(self._buffer)

    def close(self) -> bool:
        """Return whether the response is whole, now that the peer closed the connection."""
        if self._state == _UNTIL_CLOSE:
            self._state = _DONE
        return self._state == _DONE

    def feed(self, data: bytes, sink: list[bytes] | None = None) -> bool:
        """Take what one read returned; body pieces go to `sink`. Returns whether it is the end.

        Raises:
            ProtocolError: These bytes cannot be part of a response.
        """
        state = self._state
        if state <= _CHUNKED:
            # The common case: a read brings one whole chunk.
            if state == _SIZE and not self._buffer:
                line = size_line(len(data))
                if data.startswith(line) and data.endswith(b"\r\n"):
                    if sink is not None:
                        sink.append(data[len(line) : -2])
                    return False
            self._feed_chunked(data, sink)
            return self._state == _DONE
        if state == _HEAD:
            rest = self._feed_head(data)
            if rest is None:
                return False
            data = rest
            state = self._state
        if state == _LENGTH:
            if sink is not None and data:
                sink.append(data[: self._left])
            self.surplus = self.surplus or len(data) > self._left
            self._left -= min(self._left, len(data))
            if self._left == 0:
                self._state = _DONE
        elif state == _UNTIL_CLOSE:
            if sink is not None and data:
                sink.append(data)
        elif state == _DONE:
            self.surplus = self.surplus or bool(data)
        else:
            self._feed_chunked(data, sink)
        return self._state == _DONE

    def _feed_head(self, data: bytes) -> bytes | None:
        """Return what follows the head, or None while it is not complete."""
        buffer = self._buffer + data
        while True:
            if buffer[:7] != b"HTTP/1."[: len(buffer)]:
                raise ProtocolError(f"expected HTTP/1.1, found {buffer[:40]!r}")
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(buffer) > MAX_HEAD_BYTES:
                    raise ProtocolError(f"no end of the headers in {len(buffer)} bytes")
                self._buffer = buffer
                return None
            self._parse_head(buffer[:end])
            buffer = buffer[end + 4 :]
            if self.status >= 200:  # an interim response (1xx) is followed by the real one
                self._buffer = b""
                return buffer
            if not buffer:
                self._buffer = b""
                return None

    def _parse_head(self, head: bytes) -> None:
        found = _read_head(head)
        self.status, self.headers = found.status, found.headers
        self.keep_alive, self._left = found.keep_alive, found.num_bytes
        self._state = found.state

    def _feed_chunked(self, data: bytes, sink: list[bytes] | None) -> None:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        position, size = 0, len(data)
        while position < size:
            state = self._state
            if state == _SIZE:
                end = data.find(b"\r\n", position)
                if end < 0:
                    if size - position > 1024:
                        raise ProtocolError(f"chunk size {data[position : position + 20]!r}")
                    self._buffer = data[position:]
                    return
                left = _chunk_size(data[position:end])
                position = end + 2
                self._left = left
                self._state = _DATA if left else _TRAILER
            elif state == _DATA:
                piece_end = position + self._left
                if piece_end > size:
                    piece_end = size
                if sink is not None:
                    sink.append(data[position:piece_end])
                self._left -= piece_end - position
                position = piece_end
                if self._left == 0:
                    self._state = _DATA_END
            elif state == _DATA_END:
                if size - position < 2:
                    self._buffer = data[position:]
                    return
                if data[position : position + 2] != b"\r\n":
                    raise ProtocolError(f"chunk ends in {data[position : position + 2]!r}")
                position += 2
                self._state = _SIZE
            elif state == _TRAILER:
                end = data.find(b"\r\n", position)
                if end < 0:
                    self._buffer = data[position:]
                    return
                if end == position:
                    self._state = _DONE
                position = end + 2
            else:  # _DONE
                self.surplus = True
                return
