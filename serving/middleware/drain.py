"""SIGTERM: the server refuses new work while answers in progress finish."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType


def call_on_sigterm(drain: Callable[[], None]) -> None:
    """Call `drain` on SIGTERM before vLLM's own handler runs.

    An event loop runs its handlers from a wake-up descriptor. The C-level handler writes to it for
    whatever Python function is installed, so a function in front takes nothing away. The two loops
    differ in the function that was there; a call of it keeps both right.
    """
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        drain()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, on_sigterm)
    signal.siginterrupt(signal.SIGTERM, False)
