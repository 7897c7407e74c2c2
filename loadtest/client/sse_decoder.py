"""Bytes of an event stream, cut into the data of its events. Pure.

Format: the WHATWG HTML standard's "server-sent events".
"""

from __future__ import annotations

BOM = b"\xef\xbb\xbf"


class SseDecoder:
    """Cuts a stream of bytes into the data of its events; keeps what is not complete."""

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[bytes] = []
        self._at_start = True
        self._after_return = False
        """The last read ended in a carriage return, so a line feed that follows ends no new
        line."""

    @property
    def between_events(self) -> bool:
        return not self._pending and not self._data

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of each event that these bytes complete, without comments."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        if self._at_start:
            if len(data) < len(BOM) and BOM.startswith(data):
                self._pending = data
                return []
            self._at_start = False
            data = data.removeprefix(BOM)
        if self._after_return and data:
            self._after_return = False
            data = data.removeprefix(b"\n")
        # The common case: whole events of one data line each.
        if not self._data and data.endswith(b"\n\n") and b"\r" not in data:
            events = []
            for block in data[:-2].split(b"\n\n"):
                if not block.startswith(b"data: ") or b"\n" in block:
                    break
                events.append(block[6:])
            else:
                return events
        return self._feed_lines(data)

    def _feed_lines(self, data: bytes) -> list[bytes]:
        events: list[bytes] = []
        position = 0
        while True:
            line_end = _line_end(data, position)
            if line_end is None:
                self._pending = data[position:]
                return events
            line, position = data[position : line_end[0]], line_end[1]
            self._after_return = position == len(data) and data.endswith(b"\r")
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            # Other fields (event, id, retry) and comments carry no token.


def _line_end(data: bytes, start: int) -> tuple[int, int] | None:
    """Return where the line from `start` ends and the next begins; None before its end is here."""
    newline = data.find(b"\n", start)
    carriage = data.find(b"\r", start, newline if newline >= 0 else len(data))
    if carriage < 0:
        return None if newline < 0 else (newline, newline + 1)
    return carriage, carriage + 2 if data[carriage + 1 : carriage + 2] == b"\n" else carriage + 1
