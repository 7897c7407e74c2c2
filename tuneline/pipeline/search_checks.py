"""Checks of a run's `search` section before anything trains."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig
from training.config.adapter import AdapterConfig
from tuneline.core.artifact import Artifact, canonical_digest
from tuneline.core.config import keyed_values
from tuneline.core.config_problems import near_keys
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.errors import ConfigError
from tuneline.models.source import ModelSource
from tuneline.pipeline.plan import select_stages
from tuneline.pipeline.run_config import Run, RunConfig, load_run
from tuneline.pipeline.served_stages import evaluation_config
from tuneline.pipeline.stage import ADAPTER, EVALUATION_REPORT, FORGETTING, PREFERENCES, Stage
from tuneline.pipeline.stages import stages
from tuneline.pipeline.targets import require_targets

OF_ADAPTERS = frozenset(AdapterConfig.model_fields)
MOST_NAMED = 16
"""Figures that an error lists."""


def metric_of(run: Run) -> tuple[str, str]:
    """Return the stage and the figure of the metric.

    Raises:
        ConfigError: The space is empty, or the line has no such stage.
    """
    config = run.config.search
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


def with_values(run: Run, values: Mapping[str, Any], folder: Path) -> Run:
    """Return the run of a point, which keeps its artifacts in `folder`."""
    made = load_run(run.path, run.overrides, values=values)
    return Run(made.path, made.config, folder)


def require_space(run: Run, base: ModelSource) -> None:
    """Check each key of the space by itself: its path, the ends of its values, and its effect.

    Raises:
        ConfigError: A key is unknown, cannot change the metric, or takes no such value; or a grid
            has no end.
    """
    from training import ends_of, num_points

    stage, _ = metric_of(run)
    problems = []
    for name, entry in run.config.search.space.items():
        if name.partition(".")[0] in ("name", "search"):
            problems.append(f"{run.path}: search.space.{name}: is not a setting of a training")
            continue
        try:
            runs = [with_values(run, {name: value}, run.dir) for value in ends_of(entry)]
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
    num_points(run.config.search)  # a grid without an end has no number


def untrainable(run: Run, base: ModelSource, longest: int) -> list[str]:
    """Return the values of the space that cannot be trained with the other values of run.yaml.

    They are warnings: another value of a second key may go with them, and a search goes on after
    a trial that cannot be trained.

    Args:
        longest: Tokens of the longest row.
    """
    from training import ends_of

    found = []
    for name, entry in run.config.search.space.items():
        if name == "training.max_length" and run.config.data.checks.length.action != "fix":
            found += [
                f"search.space.{name}: {value} is less than the {longest:,} tokens of the longest "
                "row, so that it cannot be trained"
                for value in ends_of(entry)
                if value < longest
            ]
        if name.removeprefix("training.") not in OF_ADAPTERS:
            continue
        for value in ends_of(entry):
            try:
                require_targets(with_values(run, {name: value}, run.dir).config, base)
            except ConfigError as error:
                found.append(
                    f"search.space.{name}: {json.dumps(value)} cannot be trained with the other "
                    f"values of run.yaml: {error.message}"
                )
    return found


def require_figure(run: Run, dataset: Artifact) -> None:
    """Check that the stage of the metric will have its figure, as far as settings and data tell.

    Raises:
        ConfigError: It will not, with any value of the space.
    """
    from training import ends_of

    stage, figure = metric_of(run)
    known = _known_figures(run, stage, dataset)
    for name, entry in run.config.search.space.items():
        for value in ends_of(entry):
            if known is None or any(fnmatchcase(figure, each) for each in known):
                return
            known += _known_figures(with_values(run, {name: value}, run.dir), stage, dataset) or []
    if known is None or any(fnmatchcase(figure, each) for each in known):
        return
    raise ConfigError(
        f"{run.path}: {no_figure(stage, figure, known)}", hint=figure_hint(stage, figure, known)
    )


def search_line(run: Run) -> str:
    """Return what a search would do, for people."""
    from training import num_points

    config = run.config.search
    number = num_points(config)
    return (
        f"{config.direction} {config.metric} by {', '.join(config.space)}; {number:,} trials of "
        f"{config.sampler}"
    )


def no_figure(stage: str, figure: str, known: Sequence[str]) -> str:
    """Return the error of a metric that its stage does not have."""
    names = list(dict.fromkeys(known))
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    listed = ", ".join(names[:MOST_NAMED])
    return f"search.metric: {stage} has no figure {figure}; it has {listed}{more}"


def figure_hint(stage: str, figure: str, known: Sequence[str]) -> str:
    """Return the figure that is meant, as an option."""
    near = difflib.get_close_matches(figure, known, n=1) or [
        name for name in known if figure in name.split(".")
    ]
    return f"Try: --set search.metric={stage}.{(near or known or ['FIGURE'])[0]}"


def _known_figures(run: Run, stage: str, dataset: Artifact) -> list[str] | None:
    """Return the figures of a stage, before it runs; None for a stage that does not tell them."""
    from training import (
        comparison_figures,
        evaluation_figures,
        forgetting_figures,
        preference_figures,
        training_figures,
    )

    config = run.config
    if stage == ADAPTER:
        return training_figures(config.training)
    if stage == FORGETTING:
        return forgetting_figures()
    if stage == PREFERENCES:
        return preference_figures(config.evaluation, config.training)
    kinds = {each.name: each.kind for each in stages(run)}
    if kinds.get(stage) not in ("evaluation", "evaluation-report"):
        return None
    answers = _answers(evaluation_config(run), dataset)
    of = comparison_figures if stage == EVALUATION_REPORT else evaluation_figures
    return of(evaluation_config(run), answers)


def _answers(config: EvaluationConfig, dataset: Artifact) -> list[str]:
    from training import answered_rows, dataset_rows

    rows = answered_rows(dataset_rows(dataset, HELDOUT_FILE, config.num_rows), HELDOUT_FILE)
    return [row.answer for row in rows]


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
