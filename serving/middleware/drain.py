"""The end: SIGTERM refuses new work, and vLLM ends when the work in flight is done.

vLLM's own handler stops the engine's intake at once. A request that was accepted just before has
not reached the engine, and is answered with 200 and no text, or with 500. So the signal reaches
vLLM only when nothing is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable

from serving.middleware.engine import descendants, is_resource_tracker

EXIT_AFTER_S = 2.0
"""How long vLLM may take to end by itself. It has nothing left to lose by then."""
UNSENT_INTERVAL_S = 0.05
"""How often a drain looks whether clients have taken their answers."""


def call_on_sigterm(begin: Callable[[], None]) -> None:
    """Call `begin` on SIGTERM, in place of vLLM's own handler."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, begin)


def hand_on(*, exits_at_once: bool) -> None:
    """Tell vLLM to end, with the signal that it treats like SIGTERM."""
    # A front end that is a process of vLLM's own has a parent that waits for it.
    if exits_at_once and multiprocessing.parent_process() is None:
        asyncio.get_running_loop().call_later(EXIT_AFTER_S, _exit)
    os.kill(os.getpid(), signal.SIGINT)


def _exit() -> None:
    for child in descendants(os.getpid()):
        # A tracker removes the shared memory that is left, and ends with the last process.
        with contextlib.suppress(ProcessLookupError):
            if not is_resource_tracker(child):
                os.kill(child, signal.SIGKILL)
    os._exit(0)
