"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping

from training.tracking.tracker import TrackedRun, Tracker


def open_tensorboard(run: TrackedRun) -> Tracker:
    """Write event files that `tensorboard --logdir` shows; a continued run writes over the steps
    that were lost."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.folder), purge_step=run.first_step + 1)
    if run.first_step == 0:
        writer.add_text("settings", f"```json\n{json.dumps(run.settings, indent=2)}\n```")

    def log(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, lambda _failed: writer.close())
