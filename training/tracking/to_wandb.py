"""Weights & Biases: one run of the project that its environment variables name."""

from __future__ import annotations

import os
from collections.abc import Mapping

from training.tracking.tracker import TrackedRun, Tracker

RUN_FILE = "wandb-run"
"""Holds the id of the run, so that an interrupted training continues it."""


def open_wandb(run: TrackedRun) -> Tracker:
    """Start a run, or continue it; `WANDB_MODE=offline` keeps it in the folder."""
    import wandb

    known = run.folder / RUN_FILE
    started = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "tuneline"),
        name=run.name,
        id=run.known_id(known),
        resume="allow",
        config=dict(run.settings),
        dir=str(run.folder),
        # The figures and settings are enough: no output, no code, no address of a repository.
        settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
    )
    known.write_text(started.id)

    def log(step: int, figures: Mapping[str, float]) -> None:
        started.log(dict(figures), step=step)

    return Tracker(log, lambda failed: started.finish(exit_code=int(failed)))
