"""The plan of `up`: one entry per stage, with its state and the reason."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    NotAnArtifactError,
    TunelineError,
)
from tuneline.core.files import MANIFEST
from tuneline.core.verdict import REPEATED, read_verdict
from tuneline.models.source import ModelSource
from tuneline.pipeline import DEFAULT_RUNS
from tuneline.pipeline.keys import stage_keys
from tuneline.pipeline.products.table import product_of
from tuneline.pipeline.run_config import Run, resolve_base, training_config
from tuneline.pipeline.stage import ADAPTER, DATASET, Made, Stage
from tuneline.pipeline.stages import stages

State = Literal["current", "stale", "waiting"]


@dataclass(frozen=True)
class Planned:
    """A stage and whether it has to run.

    Attributes:
        stage: The stage.
        state: `waiting` until the stages that it needs are made.
        reason: Why, for people.
        path: Where its artifact is or will be; None while the stage waits.
    """

    stage: Stage
    state: State
    reason: str
    path: Path | None


def plan(run: Run, until: Sequence[str] = ()) -> list[Planned]:
    """Return what `up` would do now: one entry per stage, in order.

    Args:
        run: The line.
        until: Names of the stages wanted, with those they need; all of them by default.

    Raises:
        MissingError: The base model is not here.
        DataError: A data file is missing.
    """
    return plan_stages(run, select_stages(run, until), resolve_base(run, download=False))


def plan_stages(run: Run, selected: Sequence[Stage], base: ModelSource) -> list[Planned]:
    """Return what `up` would do with each selected stage, in order."""
    made: Made = {}
    planned = []
    for stage in selected:
        entry = plan_stage(run, stage, base, made)
        if entry.state == "current" and entry.path is not None:
            made[stage.name] = open_artifact(entry.path, kind=stage.kind)
        planned.append(entry)
    return planned


def plan_stage(run: Run, stage: Stage, base: ModelSource, made: Made) -> Planned:
    """Return whether one stage has to run, given what the stages before it made."""
    missing = [name for name in stage.needs if name not in made]
    if missing:
        return Planned(stage, "waiting", f"needs {', '.join(missing)}", None)
    path, *older = [run.dir / f"{stage.name}-{key}" for key in stage_keys(stage, run, base, made)]
    if not path.exists():
        return Planned(stage, "stale", _why_stale(run, stage, older), path)
    verdict = read_verdict(open_artifact(path))
    if verdict in REPEATED:
        return Planned(stage, "stale", f"the last measurement was {verdict}", path)
    return Planned(stage, "current", "up to date", path)


def _why_stale(run: Run, stage: Stage, older: Sequence[Path]) -> str:
    if not any(run.dir.glob(f"{stage.name}-*/{MANIFEST}")):
        return "not made yet"
    if any((path / MANIFEST).is_file() for path in older):
        return "an earlier Tuneline made it otherwise"
    return "its configuration or an input changed"


def select_stages(run: Run, until: Sequence[str]) -> list[Stage]:
    """Return the stages named in `until` and those that they need, in order; all without names.

    Raises:
        ConfigError: The line has no stage of that name.
    """
    all_stages = stages(run)
    by_name = {stage.name: stage for stage in all_stages}
    unknown = [name for name in until if name not in by_name]
    if unknown:
        method, proof = run.config.training.method, product_of(run.config).proof
        raise ConfigError(
            f"no stage {unknown[0]!r}; the stages are {', '.join(by_name)}",
            hint=None
            if proof is None
            else f"training.method {method.type} makes a model that answers no prompt: the line "
            f"ends with its evaluation. Try: --set 'serving.routes=[{proof.routes.proven_by[0]}]' "
            f"to serve its {proof.routes.gives}.",
        )
    wanted = set(until) or set(by_name)
    for stage in reversed(all_stages):
        if stage.name in wanted:
            wanted |= set(stage.needs)
    return [stage for stage in all_stages if stage.name in wanted]


def current(run: Run, *names: str) -> list[Artifact]:
    """Return the artifacts of stages that must be current already.

    Raises:
        NotAnArtifactError: One of them is stale; the message names the command that makes it.
    """
    planned = {entry.stage.name: entry for entry in plan(run, names)}
    artifacts = []
    for name in names:
        entry = planned[name]
        if entry.state != "current" or entry.path is None:
            raise NotAnArtifactError(
                f"{run.path}: stage {name!r} is {entry.state} ({entry.reason})",
                hint=_how_to_make(run),
            )
        artifacts.append(open_artifact(entry.path))
    return artifacts


def _how_to_make(run: Run) -> str:
    elsewhere, command = made_elsewhere(run), run.command("up")
    return f"{elsewhere}. Or make them here: {command}" if elsewhere else f"Try: {command}"


def made_elsewhere(run: Run) -> str | None:
    """Return what to type if the run has no artifacts below the current folder, and has some below
    a folder of its run.yaml: the same command in another folder would train anew.
    """
    if run.dir.parent != DEFAULT_RUNS or any(run.dir.glob(f"*/{MANIFEST}")):
        return None
    for folder in run.path.resolve().parents:
        runs = folder / DEFAULT_RUNS
        if any((runs / run.config.name).glob(f"*/{MANIFEST}")):
            place = os.path.relpath(runs)
            return (
                f"{place} has artifacts of {run.config.name}. Try: --runs-dir {shlex.quote(place)}"
            )
    return None


def all_current(run: Run) -> Made:
    """Return every artifact of the run that is current, by stage.

    Raises:
        NotAnArtifactError: There is none.
    """
    planned = plan(run)
    found = {
        entry.stage.name: open_artifact(entry.path)
        for entry in planned
        if entry.state == "current" and entry.path is not None
    }
    if not found:
        first = planned[0]
        raise NotAnArtifactError(
            f"{run.dir}: holds no artifact of {run.path}: {first.stage.name} is {first.state} "
            f"({first.reason})",
            hint=_how_to_make(run),
        )
    return found


def estimate_run(run: Run) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the memory that a line takes, as values and as lines for people.

    A base model whose files name no sizes has no estimate; the line says why.

    Raises:
        MissingError: The base model is not here.
    """
    from training import estimate_lines, estimate_memory

    config = run.config
    base = resolve_base(run, download=False)
    num_tokens = None
    if config.serving.max_model_len is not None and config.serving.max_num_seqs is not None:
        num_tokens = config.serving.max_model_len * config.serving.max_num_seqs
    estimate = partial(
        estimate_memory, training_config(run), base.path, serving_dtype=config.serving.dtype,
        num_served_tokens=num_tokens,
    )  # fmt: skip
    try:
        found = estimate()
        if _is_tight(found):
            found = estimate(sharing=_expected_sharing(run, base))
    except ArtifactError as error:
        return None, [f"no estimate of the memory: {error}"]
    return found, estimate_lines(found)


def _is_tight(found: dict[str, Any]) -> bool:
    """Return whether less memory could make another training of it.

    Only then does a plan read what rows share, since that loads torch.
    """
    chosen = {choice["key"]: choice["value"] for choice in found["choices"]}
    return bool(not found["fits"] or chosen["gradient_checkpointing"])


def _expected_sharing(run: Run, base: ModelSource) -> Any:
    """Return what the rows of a batch of the next training share; None if it is not known."""
    entries = {entry.stage.name: entry for entry in plan(run, (DATASET, ADAPTER))}
    dataset, adapter = entries[DATASET], entries[ADAPTER]
    if dataset.state != "current" or dataset.path is None or adapter.state == "current":
        return None
    from training import estimate_sharing

    try:
        return estimate_sharing(training_config(run), open_artifact(dataset.path), base)
    except TunelineError:  # `up` and `check` report it
        return None
