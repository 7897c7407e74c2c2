"""SIGINT and SIGTERM while a server runs in the foreground."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stops:
    """Count the signals that asked the foreground server to end."""

    def __init__(self) -> None:
        self.requested = 0
        self.first = 0
        """The number of the first signal."""

    def request(self, number: int, _frame: FrameType | None) -> None:
        self.first = self.first or number
        # No lock: a handler runs inside whatever the main thread does, which may hold it.
        self.requested += 1


@contextmanager
def stop_signals() -> Iterator[Stops]:
    """Count stop signals while the block lasts; call it from the main thread."""
    stops = Stops()
    before = {number: signal.signal(number, stops.request) for number in STOP_SIGNALS}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
