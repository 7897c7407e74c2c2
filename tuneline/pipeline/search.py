"""`tuneline search`: many trainings of one run.yaml, each with other values of some keys."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from training.config.search import SearchConfig
from tuneline.core.config import keyed_values, read_document
from tuneline.core.errors import TunelineError
from tuneline.core.lock import locked_file
from tuneline.core.progress import logger
from tuneline.models.source import ModelSource
from tuneline.pipeline.leftovers import LINKED
from tuneline.pipeline.plan import select_stages
from tuneline.pipeline.run_config import Run, resolve_trained
from tuneline.pipeline.search_checks import (
    figure_hint,
    metric_of,
    no_figure,
    require_figure,
    require_space,
    with_values,
)
from tuneline.pipeline.stage import ADAPTER, DATASET, Made, OnHeldout
from tuneline.pipeline.up import up
from tuneline.pipeline.winner import require_winner, write_winner


class MetricError(TunelineError):
    """The stage of the metric has no such figure, so that no trial will have it."""

    exit_code = 2


SHARED = "shared"
"""The folder of a study with the artifacts that all trials read."""


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        folder: The study.
        winner: The run.yaml with the best values.
        trials: All trials, the best one first.
        plots: The pictures.
    """

    folder: Path
    winner: Path
    trials: Sequence[Mapping[str, Any]]
    plots: Sequence[str]


def search_run(run: Run, out: Path | None = None) -> Found:
    """Search the space of a run's `search` section, and write the best point as a run.yaml.

    The figures of each trial are those of the same stages that `up` runs. The artifacts of the best
    trial are put into the run's directory, so that the new run.yaml does not train again.

    Args:
        run: The run.
        out: The new run.yaml; next to the old one by default, where relative paths hold.

    Raises:
        ConfigError: A key of the space is unknown, cannot change the metric, or takes no such
            value; or the study was made with other settings.
        TunelineError: Whatever a stage raises; a refused setting, a failed check or a lack of GPU
            memory ends only that trial.
    """
    from training import search_settings

    config = run.config.search
    stage, figure = metric_of(run)
    folder, winner = run.dir / config.study, out or run.path.with_suffix(".best.yaml")
    require_winner(run, winner)
    base = resolve_trained(run)
    require_space(run, base)
    require_figure(run, _shared(run, folder, (DATASET,))[DATASET])

    def objective(values: Mapping[str, Any], place: Path, on_heldout: OnHeldout) -> float:
        trial = with_values(run, values, place)
        _shared(trial, folder, _before_training(trial, stage))
        link_artifacts(folder / SHARED, trial.dir)
        made = up(trial, (stage,), on_heldout=on_heldout)
        return _value(made[stage].manifest.metrics, stage, figure)

    def on_end(trials: Sequence[Mapping[str, Any]]) -> None:
        values = trials[0]["values"]
        _write_winner(run, values, trials, winner)
        link_artifacts(_place(config, folder, values), run.dir)

    found = search_settings(
        config, folder, objective,
        facts=_facts(run, stage, base), first=_own_point(run, config), on_end=on_end,
    )  # fmt: skip
    return Found(folder, winner, found["trials"], found["plots"])


def _shared(run: Run, folder: Path, names: Sequence[str]) -> Made:
    """Return the artifacts of stages that trials share; one process makes them, once.

    They are in a folder of their own, since trials that run at once would wait for the lock of the
    run's directory. Artifacts of that directory are taken over.
    """
    shared = Run(run.path, run.config, folder / SHARED)
    shared.dir.mkdir(parents=True, exist_ok=True)
    with locked_file(folder / f"{SHARED}.lock", wait=True):
        link_artifacts(folder.parent, shared.dir, names)
        return up(shared, names)


def _before_training(run: Run, stage: str) -> list[str]:
    """Return the stages that a stage needs and that do not need a training."""
    after = {ADAPTER}
    for each in select_stages(run, (stage,)):
        after |= {each.name} if after & set(each.needs) else set()
    return [each.name for each in select_stages(run, (stage,)) if each.name not in after]


def link_artifacts(source: Path, target: Path, names: Sequence[str] = ("",)) -> None:
    """Put the artifacts of one run's directory into another one, without a copy of their bytes.

    Args:
        names: The stages whose artifacts are meant; all of them by default.
    """
    target.mkdir(parents=True, exist_ok=True)
    found = [path for name in names for path in source.glob(f"{name}*/manifest.json")]
    for artifact in (manifest.parent for manifest in found):
        place = target / artifact.name
        if place.exists():
            continue
        partial = target / f".{artifact.name}{LINKED}"
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        shutil.copytree(artifact, partial, copy_function=_link)
        with contextlib.suppress(OSError):  # another process was faster
            partial.rename(place)
        shutil.rmtree(partial, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _place(config: SearchConfig, folder: Path, values: Mapping[str, Any]) -> Path:
    from training import point_folder

    return point_folder(config, folder, values)


def _facts(run: Run, stage: str, base: ModelSource) -> dict[str, Any]:
    """Return what the figures of every trial depend on besides the point: settings and files."""
    selected = select_stages(run, (stage,))
    read = [section for each in selected for section in each.sections]
    document = keyed_values(run.config)
    for path in run.config.search.space:
        *parents, last = path.split(".")
        section: Any = document
        for name in parents:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(last, None)
    facts = {
        f"{top}.{name}": value
        for top, values in document.items()
        if any(_holds(getattr(run.config, top), section) for section in read)
        for name, value in values.items()
    }
    for each in selected:
        for entry in each.inputs(run, base):
            facts[f"{each.name} {entry.role}"] = entry.digest
    return facts


def _holds(section: Any, wanted: Any) -> bool:
    """Return whether a section is another one, or has it inside."""
    if not isinstance(section, BaseModel):
        return False
    inner = (getattr(section, name) for name in type(section).model_fields)
    return section is wanted or any(_holds(each, wanted) for each in inner)


def _own_point(run: Run, config: SearchConfig) -> dict[str, Any] | None:
    """Return the run's own values as the first point; None if one of them is out of the space."""
    from training import is_within

    values: dict[str, Any] = {}
    document = run.config.model_dump(mode="json")
    for name, entry in config.space.items():
        value: Any = document
        for part in name.split("."):
            if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                value = value.get(part) if isinstance(value, dict) else None
        if not is_within(entry, value):
            return None
        values[name] = value
    return values


def _value(metrics: Mapping[str, Any], stage: str, figure: str) -> float:
    value: Any = metrics
    for part in figure.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, Real):
        known = _numbers(metrics)
        raise MetricError(
            no_figure(stage, figure, known),
            hint=f"{figure_hint(stage, figure, known)}. The finished training is kept.",
        )
    return float(value)


def _numbers(metrics: Mapping[str, Any]) -> list[str]:
    """Return the numbers of a manifest, by the path of their keys."""
    names = []
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            names += [f"{name}.{inner}" for inner in _numbers(value)]
        elif isinstance(value, Real) and not isinstance(value, bool):
            names.append(name)
    return names


def _write_winner(
    run: Run,
    values: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    out: Path,
) -> None:
    """Write the run.yaml of the best point, with its evidence as a comment."""
    config = run.config.search
    document = read_document(run.path, run.overrides, values)
    document.pop("search", None)
    best = trials[0]
    states = [str(trial["state"]) for trial in trials]
    lines = [
        f"{config.metric}: {best['value']:.6g} in trial {best['number']}, the best of "
        f"{states.count('complete')} complete trials ({states.count('pruned')} pruned, "
        f"{states.count('fail')} failed).",
    ]
    own = _own_point(run, config)
    first = next((t for t in trials if own is not None and t["values"] == own), None)
    if first is not None and first["value"] is not None:
        lines.append(f"The values of {run.path.name} itself: {first['value']:.6g}.")
    write_winner(run, "search", document, lines, values, out)
    logger.info("the best run is %s", out)
