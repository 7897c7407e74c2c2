"""The line in a process that only helps another one to train.

One process of several (rank 0, on the first host) runs the line. Each other process waits until
rank 0 has prepared the data, trains with it, and is done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.progress import logger
from tuneline.models.source import ModelSource
from tuneline.pipeline.plan import plan_stage, select_stages
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.stage import ADAPTER, Line, Made, Stage

POLL_S = 1.0
SAY_EVERY_S = 60.0
SAY = "waiting for the stage %s, which rank 0 makes in %s; all hosts must share this folder"


def follow(run: Run, selected: Sequence[Stage], base: ModelSource, line: Line) -> Made:
    """Wait for the stages before the training, train with the other processes, and return both.

    Only rank 0 reports its stages and copies their artifacts elsewhere. Nothing limits the wait:
    only rank 0 knows how long the data take.
    """
    made: Made = {}
    if ADAPTER not in [stage.name for stage in selected]:
        return made
    *before, stage = select_stages(run, (ADAPTER,))
    for needed in before:
        made[needed.name] = _waited(run, needed, base, made)
    entry = plan_stage(run, stage, base, made)
    assert entry.path is not None  # noqa: S101 (the stages before it are made)
    is_current = entry.state == "current"
    made[stage.name] = (
        open_artifact(entry.path) if is_current else stage.step(line, made, entry.path)
    )
    logger.info("the training is done; rank 0 goes on with the line")
    return made


def _waited(run: Run, stage: Stage, base: ModelSource, made: Made) -> Artifact:
    """Return the artifact of a stage, as soon as the process that runs the line has made it."""
    said_s = 0.0
    while True:
        entry = plan_stage(run, stage, base, made)
        if entry.state == "current" and entry.path is not None:
            return open_artifact(entry.path, kind=stage.kind)
        if time.monotonic() - said_s >= SAY_EVERY_S:
            said_s = time.monotonic()
            logger.info(SAY, stage.name, run.dir)
        time.sleep(POLL_S)
