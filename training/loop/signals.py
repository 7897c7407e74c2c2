"""Stopping on a signal without losing steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from training.loop.checkpoints import checkpoint_step, newest_checkpoint
from training.loop.ranks import any_rank, is_first
from tuneline.core.progress import log_in_handler, logger
from tuneline.core.training_limits import MEASUREMENT_S


class _StoppedError(Exception):
    """A signal came while held-out rows were measured."""


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Ends training after the current step, with a checkpoint, once a signal has come.

    The wait is at most the step, `MEASUREMENT_S` seconds of a measurement of held-out rows, and the
    writing of the checkpoint. A measurement that takes longer is left: a checkpoint without it
    would continue with other random numbers, so the next run starts from the checkpoint before.
    """

    def __init__(self, measurement_s: float = MEASUREMENT_S) -> None:
        self.measurement_s = measurement_s
        self.received: int | None = None
        self.received_s = 0.0
        self.step_began_s = 0.0
        self.step_s: float | None = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.step_began_s = time.monotonic()

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        self.step_s = time.monotonic() - self.step_began_s
        # Processes get a signal at different moments; all of them stop after the same step.
        if self._is_stopped(self.received is not None):
            control.should_save = True
            control.should_training_stop = True

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self.require_running()

    def require_running(self) -> None:
        """Leave a measurement of held-out rows if a signal came too long ago."""
        waited_s = time.monotonic() - self.received_s
        if self._is_stopped(self.received is not None and waited_s >= self.measurement_s):
            raise _StoppedError

    def _is_stopped(self, here: bool) -> bool:
        """Return whether a signal stops this process, or another one that trains with it."""
        if not any_rank(here):
            return False
        self.received = self.received or signal.SIGTERM
        return True

    @contextmanager
    def listening(self, work: Path | None = None) -> Iterator[None]:
        """Stop training on SIGINT, SIGTERM and SIGHUP, then pass the signal to its earlier handler.

        A second signal does not wait. An ignored signal stays ignored, and outside the main thread
        no signal is caught.

        Args:
            work: The directory of checkpoints, for the message.

        Raises:
            KeyboardInterrupt: The run was stopped, and the signal's own handler returned.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = {number: signal.getsignal(number) for number in stops}
        previous = {n: handler for n, handler in handlers.items() if handler != signal.SIG_IGN}

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        def on_signal(number: int, _frame: FrameType | None) -> None:
            self.received, self.received_s = number, time.monotonic()
            restore()
            last = "" if self.step_s is None else f" (the last step took {self.step_s:.1f} s)"
            log_in_handler(
                f"  {signal.Signals(number).name}: stopping after this step{last}; "
                "a second signal does not wait"
            )

        for number in previous:
            signal.signal(number, on_signal)
        try:
            yield
        except _StoppedError:
            pass
        finally:
            restore()
        if self._is_stopped(self.received is not None):
            assert self.received is not None  # noqa: S101 (for the type checker)
            if work is not None and is_first():
                _say_where(newest_checkpoint(work))
            signal.raise_signal(self.received)
            raise KeyboardInterrupt  # half a run is never taken for a whole one


def _say_where(checkpoint: Path | None) -> None:
    if checkpoint is None:
        logger.warning("  no checkpoint was written; the same command starts from the first step")
        return
    logger.warning(
        "  the checkpoint of step %d is %s; the same command continues from there",
        checkpoint_step(checkpoint), checkpoint,
    )  # fmt: skip
