"""The loop that looks at the engine, for as long as the server runs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from serving.middleware.engine import engine_and_workers
from serving.middleware.heartbeat import (
    INTERVAL_S,
    Heartbeat,
    count_steps,
    cpu_waits_s,
    engine_compiles,
    engine_progress,
    largest_step,
)
from serving.middleware.metrics import STALLED
from serving.middleware.startup import process_age_s

if TYPE_CHECKING:
    from serving.middleware.app import TunelineMiddleware


async def watch_engine(middleware: TunelineMiddleware, app: Any = None) -> None:
    """Set the middleware's state, and end the open requests of a stuck engine.

    Args:
        app: vLLM's application, whose configuration has the most tokens of a step.
    """
    progress = engine_progress()
    if progress is None:
        return
    count_steps(app)
    config = getattr(getattr(app, "state", None), "vllm_config", None)
    most = 0 if config is None else config.scheduler_config.max_num_batched_tokens
    step_s = largest_step(most)
    beat = Heartbeat(middleware.settings.stall_after_s, process_age_s(), engine_compiles)
    processes = engine_and_workers()
    question: asyncio.Task[None] | None = None
    clock_s, looked_s = 0.0, time.monotonic()
    while True:
        await asyncio.sleep(INTERVAL_S)
        now_s = time.monotonic()
        # While this loop is stopped or held up, nobody reads what the engine has computed, so
        # that time does not count: `docker pause`, or a body that takes seconds to parse.
        clock_s += min(now_s - looked_s, 2 * INTERVAL_S)
        looked_s = now_s
        waiting = [exchange for exchange in middleware.in_flight if exchange.awaits_engine]
        is_busy = bool(waiting or middleware.proofs)
        beat.largest_step_s = step_s()
        state = beat.observe(progress(), is_busy, clock_s, cpu_waits_s(processes))
        middleware.state = state
        STALLED.set(state != "moving")
        why = None
        if state == "stuck":
            why = "The engine made no progress; the answer was ended."
            for call in middleware.proofs:
                call.cancel()
        elif not middleware.engine_lives():
            why = "The engine of this server has ended; ask again."
        if why is not None:
            for exchange in waiting:
                exchange.end(503, "ServiceUnavailableError", why)
        if beat.is_in_doubt and (question is None or question.done()):
            beat.note_question()
            question = asyncio.create_task(middleware.ask_engine())
