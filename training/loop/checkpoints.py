"""Checkpoints of a run in progress.

They are in `.<out>.work/` next to the future artifact, belong to one configuration and one set of
inputs, and are removed when the artifact is complete. The Trainer writes them with `torch.save`;
they are working files and never part of an artifact.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
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
        self.end_s: float | None = None

    @property
    def wall_s(self) -> float:
        """Seconds of training, over all interruptions."""
        end_s = time.monotonic() if self.end_s is None else self.end_s
        return self.earlier_s + end_s - self.start_s

    def stop(self) -> None:
        """End the measurement of time."""
        self.end_s = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start_s = time.monotonic()

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        mark = checkpoint / f"{COMPLETE_FILE}.partial"
        mark.write_text(json.dumps({"wall_s": self.wall_s}))
        mark.rename(checkpoint / COMPLETE_FILE)
