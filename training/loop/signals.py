"""Stopping on a signal without losing steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from tuneline.core.progress import logger


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Ends training after the current step, with a checkpoint, once a signal has come."""

    def __init__(self) -> None:
        self.received: int | None = None

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Stop training on SIGINT and SIGTERM, then pass the signal to its earlier handler.

        A second signal does not wait. An ignored signal stays ignored, and outside the main thread
        no signal is caught.

        Raises:
            KeyboardInterrupt: The run was stopped, and the signal's own handler returned.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        previous = {n: handler for n, handler in handlers.items() if handler != signal.SIG_IGN}

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        def on_signal(number: int, _frame: FrameType | None) -> None:
            self.received = number
            restore()
            logger.warning("  stopping after this step; the same command continues from there")

        for number in previous:
            signal.signal(number, on_signal)
        try:
            yield
        finally:
            restore()
        if self.received is not None:
            signal.raise_signal(self.received)
            raise KeyboardInterrupt  # half a run is never taken for a whole one
