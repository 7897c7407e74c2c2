"""Processes of vLLM that wait for one another with little use of a CPU.

On a CPU, vLLM's engine hands each step to its worker through shared memory. The process that waits
asks for the next message in a loop for a second before it sleeps (vLLM 0.32.0). Each request then
costs two seconds of CPU time after its answer, and during the answer the loop takes a CPU from the
computation, the HTTP server and the client. A notification over a socket follows each message, so
a process can sleep soon.

Notifications get lost: the socket drops the second of two that follow each other within about a
millisecond, and vLLM then looks again after five seconds. So a process loops for longer than that
millisecond, and a process that sleeps looks again after a few milliseconds.
"""

from __future__ import annotations

import functools
from typing import Any

BUSY_LOOP_S = 0.005
"""libzmq learns that a message has left its queue of one within 3 million ticks of the processor's
clock: 1 to 3 ms."""
LOOK_AGAIN_MS = 10
"""A lost notification costs at most this time. A hundred looks a second use 1 % of a CPU."""


def register() -> None:
    """Let the processes of a server on a CPU sleep soon when they wait."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    sleep_soon(SpinCondition)


def sleep_soon(condition: Any) -> None:
    """Let vLLM's condition loop for `BUSY_LOOP_S` and sleep for `LOOK_AGAIN_MS` at most.

    The caller of `wait` checks for a message after each return, whatever its reason.
    """
    wait = condition.wait
    if getattr(wait, "sleeps_soon", False):  # a forked process corrects what its parent corrected
        return
    condition.__init__ = functools.partialmethod(condition.__init__, busy_loop_s=BUSY_LOOP_S)

    @functools.wraps(wait)
    def wait_briefly(self: Any, timeout_ms: int | None = None) -> None:
        wait(self, LOOK_AGAIN_MS if timeout_ms is None else min(timeout_ms, LOOK_AGAIN_MS))

    wait_briefly.sleeps_soon = True  # type: ignore[attr-defined]
    condition.wait = wait_briefly
