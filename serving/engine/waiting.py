"""Processes of vLLM that wait for one another without using a CPU.

On a CPU, vLLM's engine hands each step to its worker through shared memory. The process that waits
asks for the next message in a loop for a second before it sleeps (vLLM 0.32.0). Each request then
costs two seconds of CPU time after its answer, and during the answer the loop takes a CPU from the
computation, the HTTP server and the client. A notification over a socket follows each message, so
a process can sleep at once. It wakes up in about 0.1 ms, and a step takes milliseconds.
"""

from __future__ import annotations

import functools
from typing import Any


def register() -> None:
    """Let the processes of a server on a CPU sleep as soon as they wait."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    sleep_at_once(SpinCondition)


def sleep_at_once(condition: Any) -> None:
    """Set the time that vLLM's condition loops before it sleeps to zero."""
    condition.__init__ = functools.partialmethod(condition.__init__, busy_loop_s=0.0)
