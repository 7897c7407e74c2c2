"""Checkpoints of a run in progress, and stopping on a signal without losing steps.

They lie in `.<out>.work/` beside the artifact to be, belong to one configuration and one set of
inputs, and are removed when the artifact is whole. The Trainer writes them with `torch.save`; they
are working files and never part of an artifact.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from tuneline.core.progress import logger

KEY_FILE = "key"
COMPLETE_FILE = "complete.json"


def open_work_dir(out: Path, key: str) -> Path:
    """The directory of checkpoints for `out`; what another `key` left there is removed."""
    work = out.parent / f".{out.name}.work"
    key_file = work / KEY_FILE
    if work.exists() and (not key_file.is_file() or key_file.read_text() != key):
        logger.info("  checkpoints of another configuration are removed")
        shutil.rmtree(work)
    if not work.exists():
        work.mkdir(parents=True)
        key_file.write_text(key)
    return work


def newest_checkpoint(work: Path) -> Path | None:
    """The furthest checkpoint that was written whole; half-written ones are removed."""
    complete = []
    for checkpoint in work.glob("checkpoint-*"):
        if (checkpoint / COMPLETE_FILE).is_file():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: int(path.name.partition("-")[2]), default=None)


class CheckpointMarks(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint when all of its files are written, with the time spent so far."""

    def __init__(self, resumed_from: Path | None) -> None:
        self.earlier_s = 0.0
        if resumed_from is not None:
            mark = json.loads((resumed_from / COMPLETE_FILE).read_text())
            self.earlier_s = float(mark["wall_s"])
        self.start_s = time.monotonic()

    @property
    def wall_s(self) -> float:
        """Seconds of training, over all interruptions."""
        return self.earlier_s + time.monotonic() - self.start_s

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start_s = time.monotonic()

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        mark = checkpoint / f"{COMPLETE_FILE}.partial"
        mark.write_text(json.dumps({"wall_s": self.wall_s}))
        mark.rename(checkpoint / COMPLETE_FILE)


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
        """SIGINT and SIGTERM ask for the stop; once it has happened, the signal goes on to whoever
        handled it before. A second signal does not wait. A signal that is ignored stays ignored,
        and off the main thread none is caught.

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
