"""`tuneline search`: many trainings of one run.yaml, each with other values of some keys."""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel

from training.config.search import SearchConfig
from tuneline.core.artifact import canonical_digest
from tuneline.core.config import keyed_values, read_document
from tuneline.core.config_problems import near_keys
from tuneline.core.errors import ConfigError, TunelineError
from tuneline.core.lock import locked_file
from tuneline.core.progress import logger
from tuneline.models.source import ModelSource
from tuneline.pipeline.plan import select_stages
from tuneline.pipeline.run_config import Run, RunConfig, load_run, resolve_base
from tuneline.pipeline.stage import DATASET, Stage
from tuneline.pipeline.stages import stages
from tuneline.pipeline.up import up
from tuneline.pipeline.winner import require_winner, write_winner


class MetricError(TunelineError):
    """The stage of the metric has no such figure, so that no trial will have it."""

    exit_code = 2


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
    stage, figure = _metric(run, config)
    folder, winner = run.dir / config.study, out or run.path.with_suffix(".best.yaml")
    require_winner(run, winner)
    base = resolve_base(run, download=True)
    _require_space(run, stage, base)

    def objective(
        values: Mapping[str, Any], place: Path, on_heldout: Callable[[int, float], None]
    ) -> float:
        trial = _with_values(run, values, place)
        shared = Run(trial.path, trial.config, folder / "shared")
        with locked_file(folder / "shared.lock", wait=True):
            up(shared, (DATASET,))
        link_artifacts(shared.dir, trial.dir)
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


def link_artifacts(source: Path, target: Path) -> None:
    """Put the artifacts of one run's directory into another one, without a copy of their bytes."""
    target.mkdir(parents=True, exist_ok=True)
    for manifest in source.glob("*/manifest.json"):
        artifact = manifest.parent
        place = target / artifact.name
        if place.exists():
            continue
        with TemporaryDirectory(prefix=".linked-", dir=target) as partial:
            shutil.copytree(artifact, Path(partial) / artifact.name, copy_function=_link)
            with contextlib.suppress(OSError):  # another process was faster
                (Path(partial) / artifact.name).rename(place)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _place(config: SearchConfig, folder: Path, values: Mapping[str, Any]) -> Path:
    from training import point_folder

    return point_folder(config, folder, values)


def _metric(run: Run, config: SearchConfig) -> tuple[str, str]:
    """Return the stage and the figure of the metric."""
    if not config.space:
        raise ConfigError(
            f"{run.path}: search.space: is empty; expected keys with the values to try",
            hint="Try: search: {space: {training.learning_rate: {low: 1e-5, high: 1e-3}}}",
        )
    stage, _, figure = config.metric.partition(".")
    try:
        select_stages(run, (stage,))
    except ConfigError as error:
        near = difflib.get_close_matches(stage, [each.name for each in stages(run)], n=1)
        hint = f"Try: --set search.metric={near[0]}.{figure}" if near else error.hint
        raise ConfigError(f"{run.path}: search.metric: {error.message}", hint=hint) from None
    return stage, figure


def _with_values(run: Run, values: Mapping[str, Any], folder: Path) -> Run:
    made = load_run(run.path, run.overrides, values=values)
    return Run(made.path, made.config, folder)


def _require_space(run: Run, stage: str, base: ModelSource) -> None:
    """Check each key of the space by itself: its path, the ends of its values, and its effect."""
    from training import ends_of

    problems = []
    for name, entry in run.config.search.space.items():
        if name.partition(".")[0] in ("name", "search"):
            problems.append(f"{run.path}: search.space.{name}: is not a setting of a training")
            continue
        try:
            runs = [_with_values(run, {name: value}, run.dir) for value in ends_of(entry)]
        except ConfigError as error:
            problems += [_of_the_space(run, name, problem) for problem in error.problems]
            continue
        keys = {_key(each, select_stages(each, (stage,)), base) for each in runs}
        if len(keys) == 1 and len(runs) > 1:
            problems.append(
                f"{run.path}: search.space.{name}: cannot change {run.config.search.metric}; "
                "expected a key that a stage before it reads"
            )
    if problems:
        raise ConfigError(problems)


def _of_the_space(run: Run, name: str, problem: str) -> str:
    """Return a problem with a key of the space as one of `search.space`; name the key that is meant
    if there is no such key."""
    said = problem.removeprefix(f"{run.path}: ").removeprefix(f"{name}: ")
    near = near_keys(RunConfig, name)[:3]
    if "unknown key" in said or (said.startswith("is called ") and near):
        said = "unknown key; expected a key of run.yaml by its path" + (
            f". Write {' or '.join(near)}" if near else ", such as training.learning_rate"
        )
    return f"{run.path}: search.space.{name}: {said}"


def _key(run: Run, selected: Sequence[Stage], base: ModelSource) -> str:
    """Return a digest of all settings and files that stages read, without their artifacts."""
    sections = [keyed_values(section) for stage in selected for section in stage.sections]
    inputs = [[entry.role, entry.digest] for stage in selected for entry in stage.inputs(run, base)]
    names = [run.config.base_model, run.config.base_revision]
    return canonical_digest([sections, inputs, names])


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
        known = sorted(
            name for name, number in metrics.items()
            if isinstance(number, Real) and not isinstance(number, bool)
        )  # fmt: skip
        near = difflib.get_close_matches(figure, known, n=1)
        raise MetricError(
            f"search.metric: {stage} has no figure {figure}; it has {', '.join(known)}",
            hint=f"Try: --set search.metric={stage}.{(near or known or ['FIGURE'])[0]}. The "
            "finished training is kept.",
        )
    return float(value)


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
