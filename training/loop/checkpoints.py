"""Checkpoints of a run in progress.

They are in `.<out>.work/` next to the future artifact, belong to one configuration and one set of
inputs, and are removed when the artifact is complete. The Trainer writes them with `torch.save`;
they are working files and never part of an artifact.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from training.config import TrainingConfig
from training.estimates.memory import moment_bytes
from training.loop.proof import state_bytes
from training.loop.ranks import any_rank, is_first, is_seen, num_ranks, of_first, wait_for_all
from training.loop.setup import numeric_setup, setup_changes
from tuneline.core.artifact import canonical_digest
from tuneline.core.disk import replace_file, require_disk_space, sync_path
from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger
from tuneline.core.shorten import shorten

KEY_FILE = "key.json"
COMPLETE_FILE = "complete.json"
OTHER_FILES_BYTES = 2**17
"""State of the Trainer and of the random numbers, schedule, arguments and configuration."""


def open_work_dir(out: Path, facts: Mapping[str, Any]) -> Path:
    """Return the directory of checkpoints for `out`; checkpoints of other facts are removed.

    Args:
        facts: The settings and inputs that decide the result, as JSON values by name.
    """
    work = _work_dir(out)
    if work.exists():
        differences = _differences(work / KEY_FILE, facts)
        if differences:
            logger.warning(
                "  %s: its checkpoints are of another run and are removed: %s", work, differences
            )
            shutil.rmtree(work)
    if not work.exists():
        work.mkdir(parents=True)
        replace_file(work / KEY_FILE, json.dumps(facts))
    return work


def newest_checkpoint(work: Path) -> Path | None:
    """Return the furthest checkpoint that is complete; the others are removed."""
    complete = []
    for checkpoint in work.glob("checkpoint-*"):
        if is_complete(checkpoint):
            complete.append(checkpoint)
        else:
            logger.info("  %s: is not complete and is removed", checkpoint)
            shutil.rmtree(checkpoint)
    return max(complete, key=checkpoint_step, default=None)


def open_checkpoints(out: Path, facts: Mapping[str, Any]) -> tuple[Path, Path | None]:
    """Return the directory of checkpoints, and the checkpoint that all processes continue from.

    Raises:
        ConfigError: A process does not see the directory that rank 0 made.
    """
    work = open_work_dir(out, facts) if is_first() else _work_dir(out)
    found = newest_checkpoint(work) if is_first() else None
    step = int(of_first(checkpoint_step(found)))
    if any_rank(num_ranks() > 1 and not is_seen(work)):
        raise ConfigError(
            f"{work}: is not there on every host; the processes of a training share the run's "
            "directory",
            hint="Mount one file system at this path on all hosts.",
        )
    checkpoint = work / f"checkpoint-{step}" if step else None
    if checkpoint is not None and is_first():
        _say_other_number(checkpoint)
    return work, checkpoint


def _say_other_number(checkpoint: Path) -> None:
    """Warn if other random numbers follow; each process has its own in the checkpoint."""
    files = len(list(checkpoint.glob("rng_state*.pth")))
    if files != num_ranks():
        logger.warning(
            "  %s was written by %d processes, and %d continue: any dropout draws other numbers",
            checkpoint, files, num_ranks(),
        )  # fmt: skip


def is_complete(checkpoint: Path) -> bool:
    """Return whether every file of a checkpoint has the size with which it was written."""
    try:
        mark = json.loads((checkpoint / COMPLETE_FILE).read_text(encoding="utf-8"))
        return all(
            (checkpoint / name).stat().st_size == size for name, size in mark["files"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def checkpoint_step(checkpoint: Path | None) -> int:
    """Return the number of steps that a checkpoint saves; 0 without one."""
    return int(checkpoint.name.partition("-")[2]) if checkpoint else 0


def checkpoint_bytes(config: TrainingConfig, model: torch.nn.Module, base: Path) -> int:
    """Return the estimated size of a checkpoint: weights, moments, tokenizer, the proof's state."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_trained = sum(parameter.numel() for parameter in trained)
    size: int = num_trained * (4 + moment_bytes(config.optim)) + state_bytes(trained)
    if getattr(config.method, "sync_ref_model", False):
        size += sum(4 * parameter.numel() for parameter in model.parameters())
    tokenizer = base / "tokenizer.json"
    if tokenizer.is_file():
        size += tokenizer.stat().st_size
    return size + OTHER_FILES_BYTES


def require_room(config: TrainingConfig, model: torch.nn.Module, base: Path, out: Path) -> None:
    """Check that the disk takes the checkpoints that are kept, one more, and the result.

    Checkpoints that are there already count as room: they are kept, or removed before the first
    step.

    Raises:
        DiskFullError: It does not.
    """
    size = checkpoint_bytes(config, model, base)
    number = config.save_total_limit + 1 + config.load_best_model_at_end
    result = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    written = sum(
        path.stat().st_size for path in _work_dir(out).glob("checkpoint-*/**/*") if path.is_file()
    )
    require_disk_space(
        out.parent,
        max(0, number * size + result - written),
        purpose=f"{number} checkpoints of {size:,} bytes and the result of {result:,} bytes",
    )


class CheckpointMarks(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint when all of its files are on the disk, then removes older ones.

    The Trainer itself removes an old checkpoint before the new one is marked, and starts with any
    of its files: a kill in between would leave no checkpoint, or one that only looks complete.
    """

    def __init__(self, config: TrainingConfig, resumed_from: Path | None) -> None:
        self.limit, self.minutes = config.save_total_limit, config.save_minutes
        self.earlier_s = 0.0
        self.setup = numeric_setup()
        self.setup_changes: list[str] = []
        if resumed_from is not None:
            mark = json.loads((resumed_from / COMPLETE_FILE).read_text())
            self.earlier_s = float(mark["wall_s"])
            changes = setup_changes(mark.get("setup", {}), self.setup)
            if changes:
                logger.warning(
                    "  the checkpoint is of another setup, so that the result may differ in its "
                    "last bits from an uninterrupted run: %s",
                    "; ".join(changes),
                )
            step = checkpoint_step(resumed_from)
            self.setup_changes = [
                *mark.get("setup_changes", []),
                *(f"step {step}: {change}" for change in changes),
            ]
        self.start_s = self.saved_s = time.monotonic()
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
        self.start_s = self.saved_s = time.monotonic()

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint if the last one is too old."""
        if self.minutes is None:
            return
        if any_rank(time.monotonic() - self.saved_s >= 60 * self.minutes):
            control.should_save = True

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Mark the checkpoint, and remove those that are not kept."""
        wait_for_all()  # each process writes a file of its own
        self.saved_s = time.monotonic()
        if not is_first():
            return
        work = Path(args.output_dir)
        checkpoint = work / f"checkpoint-{state.global_step}"
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        for path in files:
            sync_path(path)
        sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
        facts = {
            "wall_s": self.wall_s, "files": sizes, "setup": self.setup,
            "setup_changes": self.setup_changes,
        }  # fmt: skip
        replace_file(checkpoint / COMPLETE_FILE, json.dumps(facts))
        sync_path(checkpoint)
        best = state.best_global_step
        others = sorted(
            (path for path in work.glob("checkpoint-*") if checkpoint_step(path) != best),
            key=checkpoint_step,
        )
        for old in others[: -self.limit]:
            (old / COMPLETE_FILE).unlink(missing_ok=True)  # first: the rest is not complete
            shutil.rmtree(old)


def _work_dir(out: Path) -> Path:
    return out.parent / f".{out.name}.work"


def _differences(key_file: Path, facts: Mapping[str, Any]) -> str:
    """Return in words how the facts of earlier checkpoints differ; "" if they do not."""
    try:
        earlier = json.loads(key_file.read_text(encoding="utf-8"))
        if canonical_digest(earlier) == canonical_digest(dict(facts)):
            return ""
        names = [*facts, *(name for name in earlier if name not in facts)]
        return "; ".join(
            f"{name} was {_short(earlier.get(name))}, now {_short(facts.get(name))}"
            for name in names
            if earlier.get(name) != facts.get(name)
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{key_file.name} cannot be read"


def _short(value: Any) -> str:
    return shorten(json.dumps(value), 40)
