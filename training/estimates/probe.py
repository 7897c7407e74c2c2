"""The time that a training takes, by ten steps of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from training.config import TrainingConfig
from training.config.launch import launch_line
from training.estimates.duration import num_measurements, time_hints
from training.hardware import require_hardware
from training.loop.arguments import trainer_arguments
from training.loop.memory import peak_memory_bytes
from training.model import quiet_libraries, require_one_gpu
from training.prepared import Prepared, prepare_training
from tuneline.core.artifact import Artifact
from tuneline.models.source import ModelSource

PROBE_STEPS = 10
UNCOUNTED_STEPS = 1
"""Steps at the start that load kernels and fill caches."""


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Measures each step, from its first batch on."""

    def __init__(self) -> None:
        self.steps_s: list[float] = []
        self.began_s = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began_s = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps_s.append(time.monotonic() - self.began_s)


def probe_training(
    config: TrainingConfig, dataset: Artifact, base: ModelSource, *, relative_to: Path = Path()
) -> dict[str, Any]:
    """Train ten steps, keep nothing, and return the time that the whole training takes.

    The held-out rows are measured once, in a sample. Rows of like length share a batch, so a step's
    time differs from the next one's; the estimate is the mean of nine steps times their number.

    Raises:
        TunelineError: An error that training itself would raise before its first steps.
    """
    quiet_libraries()
    require_one_gpu()
    require_hardware(config)
    processes = launch_line(config)
    # The probe is one process; the steps of several have the same rows.
    config = config.model_copy(
        update={"method": config.method.resolved(relative_to), "launch": None}
    )
    prepared = prepare_training(config, dataset, base)
    with TemporaryDirectory(prefix="tuneline-probe-") as folder:
        arguments = trainer_arguments(prepared.chosen, Path(folder), resumed=True)
        arguments |= {"max_steps": PROBE_STEPS, "save_strategy": "no", "eval_strategy": "no"}
        trainer = prepared.trainer(config, arguments)
        trainer.remove_callback(PrinterCallback)
        clock = _Clock()
        trainer.add_callback(clock)
        trainer.train()
        heldout_s = _heldout_seconds(trainer, prepared, config)
    batches = len(trainer.get_train_dataloader())
    per_epoch = math.ceil(batches / config.gradient_accumulation_steps)
    num_steps = config.max_steps or math.ceil(per_epoch * config.num_train_epochs)
    counted = clock.steps_s[UNCOUNTED_STEPS:] or clock.steps_s
    step_s = sum(counted) / len(counted)
    num_measured = num_measurements(num_steps, config.eval_steps or per_epoch)
    found = {
        "num_probed_steps": len(clock.steps_s),
        "step_s": step_s,
        "num_steps": num_steps,
        "training_s": num_steps * step_s,
        "heldout_s": heldout_s,
        "num_heldout_measurements": num_measured,
        "total_s": num_steps * step_s + num_measured * heldout_s,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    hints = time_hints(config, found)
    if processes:
        hints.append(f"the probe ran in one process; training runs in {processes}")
    return found | {"hints": hints}


def _heldout_seconds(trainer: Any, prepared: Prepared, config: TrainingConfig) -> float:
    """Return the time of a held-out measurement, by a sample of evenly spaced rows."""
    total = len(prepared.heldout_rows)
    size = min(total, 4 * config.per_device_train_batch_size)
    places = [index * total // size for index in range(size)]
    began_s = time.monotonic()
    # As an argument, a dataset would get its precomputed reference a second time.
    trainer.eval_dataset = trainer.eval_dataset.select(places)
    trainer.evaluate()
    return (time.monotonic() - began_s) * total / size
