"""The time of a line's training, by ten steps of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tuneline.core.artifact import Artifact, open_artifact
from tuneline.models.source import ModelSource
from tuneline.pipeline.plan import plan
from tuneline.pipeline.run_config import Run, resolve_trained
from tuneline.pipeline.stage import DATASET
from tuneline.pipeline.up import up


def probe_run(run: Run) -> tuple[dict[str, Any], list[str]]:
    """Train ten steps of a run, and return the time as values and as lines for people.

    Nothing is written into the run's directory: data that is not prepared yet is prepared aside.

    Raises:
        TunelineError: The data or the base model cannot be used.
    """
    base = resolve_trained(run)
    (entry,) = plan(run, (DATASET,))
    if entry.state == "current" and entry.path is not None:
        return _probe(run, base, open_artifact(entry.path))
    with TemporaryDirectory(prefix="tuneline-probe-") as folder:
        made = up(replace(run, dir=Path(folder)), (DATASET,))
        return _probe(run, base, made[DATASET])


def _probe(run: Run, base: ModelSource, dataset: Artifact) -> tuple[dict[str, Any], list[str]]:
    from training import probe_training, time_lines

    found = probe_training(run.config.training, dataset, base, relative_to=run.path.parent)
    return {"time": found}, time_lines(found)
