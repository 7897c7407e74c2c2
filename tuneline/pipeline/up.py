"""Run the stale stages and skip the current ones.

A changed section changes the key of its stage, and the keys of later stages if the new artifact has
other content. Artifacts of earlier configurations stay, so going back to one costs nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from tuneline.core.artifact import Artifact, open_artifact, verify_artifact
from tuneline.core.disk import cannot_write
from tuneline.core.errors import ArtifactError, VerdictError
from tuneline.core.lock import locked_file
from tuneline.core.progress import logger
from tuneline.core.verdict import require_verdict
from tuneline.models.source import ModelSource
from tuneline.pipeline.follow import follow
from tuneline.pipeline.plan import (
    Planned,
    made_elsewhere,
    plan_stage,
    plan_stages,
    select_stages,
)
from tuneline.pipeline.run_config import Run, resolve_base, resolve_trained
from tuneline.pipeline.server import LazyServer
from tuneline.pipeline.stage import DATASET, Line, Made, OnHeldout, Stage

REMOVED = ".removed-"
"""The beginning of a folder's name while `tuneline clean` removes it."""
SCRATCH = (".rows-*", ".release-*", f"{REMOVED}*")
"""Temporary folders. Only the holder of the run's lock makes them, so at its beginning they are
those of a process that was killed; one holds all rows of the data."""


def up(
    run: Run,
    until: Sequence[str] = (),
    on_stage: Callable[[Planned, Artifact, float], None] = lambda *_: None,
    *,
    keep_going: bool = False,
    on_heldout: OnHeldout | None = None,
) -> Made:
    """Run the stale stages in order and return every artifact of the line.

    A process that only helps another one to train waits for the data, trains, and is done.

    Args:
        run: The line.
        until: Names of the stages wanted, with those they need; all of them by default.
        on_stage: Is called after each stage with its plan, its artifact and its wall time in
            seconds (0 for a stage that was current).
        keep_going: Whether the stages after a failed verdict run too; the first such verdict is
            raised at the end.
        on_heldout: Is called with step and figures after each held-out measurement of the training;
            what it raises ends the line.

    Raises:
        VerdictError: A verdict is not PASS. Its artifact is kept, and the stages after it do not
            run unless `keep_going` is set.
        TunelineError: Whatever a stage raises.
    """
    from training import is_follower

    selected = select_stages(run, until)
    base = resolve_trained(run)
    if is_follower(run.config.training.launch):
        line = Line(run, base, LazyServer(run, base, ExitStack()).endpoint)
        return follow(run, selected, base, line)
    pending = _require_ready(run, selected, base)
    if elsewhere := made_elsewhere(run):
        logger.warning("%s", elsewhere)
    made: Made = {}
    whole: set[str] = set()
    failed: list[VerdictError] = []
    with ExitStack() as stack:
        stack.enter_context(lock_run(run))
        line = Line(run, base, LazyServer(run, base, stack).endpoint, on_heldout)
        for number, stage in enumerate(selected, start=1):
            entry = plan_stage(run, stage, base, made)
            started_s = time.monotonic()
            if entry.state != "current":
                logger.info("[%d/%d] %s (%s)", number, len(selected), stage.title, entry.reason)
                # Planning looked at sizes only; what a stage reads is checked to the last byte.
                for name in set(stage.needs) - whole:
                    verify_artifact(made[name])
                whole |= {*stage.needs, stage.name}
            made[stage.name] = _make(entry, line, made)
            wall_s = 0.0 if entry.state == "current" else time.monotonic() - started_s
            on_stage(entry, made[stage.name], wall_s)
            if stage.name == DATASET:
                require_dataset(run, pending, made[DATASET])
            try:
                require_verdict(made[stage.name])
            except VerdictError as error:
                if not keep_going:
                    raise
                failed.append(error)
    if failed:
        raise failed[0]
    return made


def require_dataset(run: Run, wanted: Sequence[Stage], dataset: Artifact) -> None:
    """Check what the stages need of the dataset, so that they stop the line before training.

    Raises:
        TamperedError: The dataset differs from its manifest.
        DataError: Held-out rows lack something.
    """
    checks = dict.fromkeys(check for stage in wanted for check in stage.accepts)
    if checks:
        verify_artifact(dataset)
    for check in checks:
        check(run, dataset)


def make_dataset(run: Run) -> Artifact:
    """Return the run's dataset, and make it if it is not current.

    Any process makes it, whatever `training.launch` and the environment say of its rank. The caller
    holds the run's lock if the dataset is not current.

    Raises:
        DataError: The data cannot be used.
    """
    base = resolve_base(run, download=True)
    (stage,) = select_stages(run, (DATASET,))
    entry = plan_stage(run, stage, base, {})
    if entry.state != "current":
        logger.info("%s (%s)", stage.title, entry.reason)
    return _make(entry, Line(run, base, LazyServer(run, base, ExitStack()).endpoint), {})


def _make(entry: Planned, line: Line, made: Made) -> Artifact:
    assert entry.path is not None  # noqa: S101 (every need has been made by now)
    if entry.state == "current":
        return open_artifact(entry.path, kind=entry.stage.kind)
    # A measurement that was INVALID or INCONCLUSIVE is there already; its successor replaces it.
    shutil.rmtree(entry.path, ignore_errors=True)
    return entry.stage.step(line, made, entry.path)


def _require_ready(run: Run, selected: Sequence[Stage], base: ModelSource) -> list[Stage]:
    """Check what late stages need, so that they stop the line before training, not after it.

    Returns:
        The stages that are not current.
    """
    pending = [e.stage for e in plan_stages(run, selected, base) if e.state != "current"]
    for check in dict.fromkeys(check for stage in pending for check in stage.prepare):
        check(run)
    return pending


@contextlib.contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Keep a second process out of the run's directory: both would train the same adapter.

    Raises:
        ArtifactError: Another process holds the lock, or the directory cannot be written.
    """
    with ExitStack() as stack:
        try:
            run.dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_file(run.dir / ".lock"))
        except BlockingIOError:
            raise ArtifactError(
                f"{run.dir}: another tuneline works in this directory",
                hint="Wait until it ends, or end it.",
            ) from None
        except OSError as error:
            raise cannot_write(run.dir, error) from error
        for pattern in SCRATCH:
            for folder in run.dir.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)
        yield
