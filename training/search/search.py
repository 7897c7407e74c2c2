"""The search itself: trials one after the other, until the study has enough."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from training.config.search import SearchConfig
from training.loop.progress import OnHeldout
from training.search.plots import write_plots
from training.search.space import values_of
from training.search.study import (
    Started,
    counts,
    named_database,
    next_trial,
    num_points,
    open_study,
    point_folder,
    study_lock,
)
from training.tracking.tracker import TRACKING
from tuneline.core.errors import ConfigError, DataError, GpuMemoryError, VerdictError
from tuneline.core.progress import logger

Objective = Callable[[Mapping[str, Any], Path, OnHeldout], float]
"""`(values, folder, on_heldout)` -> the metric. `folder` belongs to the point, so a point that is
tried again finds what the killed process left there. `on_heldout(step, figures)` may end the
trial."""


def search_settings(
    config: SearchConfig,
    folder: Path,
    objective: Objective,
    *,
    facts: Mapping[str, Any],
    first: Mapping[str, Any] | None,
    on_end: Callable[[Sequence[Mapping[str, Any]]], None] = lambda _trials: None,
) -> dict[str, Any]:
    """Try points until the study has enough, and return its trials, the best one first.

    Several processes may do so at once. The folder then has `history.png` and `parallel.png`, and
    below `points/` what the best trial made.

    Args:
        facts: The settings and files that the figures depend on, as JSON values by name.
        first: Values of the first point; None draws it.
        on_end: Is called with the trials under the lock of the study, so that no other process
            ends a better trial and removes the files of the best one.

    Raises:
        ConfigError: The study was made with other facts, or no trial was completed.
        ArtifactError: The folder holds no study, or cannot be written.
        DiskFullError: The disk is full.
    """
    with named_database(folder):
        study = open_study(config, folder, facts, first)
        study.pruner = _pruner(config)
        num_tried = 0
        while (started := next_trial(study, config, folder)) is not None:
            with started.lock:
                _run_trial(study, config, folder, started, objective)
            num_tried += 1
        if not num_tried:
            logger.info("nothing is left to try of %d points", num_points(config))
        with study_lock(folder):
            trials = _ranked(study, config, folder)
            on_end(trials)
            plots = _plots(trials, config, folder)
    return {"trials": trials, "plots": plots}


def _plots(trials: Sequence[Mapping[str, Any]], config: SearchConfig, folder: Path) -> list[str]:
    """Return the paths of the pictures; a picture that cannot be drawn is only a warning."""
    try:
        return [str(path) for path in write_plots(trials, config, folder)]
    except Exception as error:  # noqa: BLE001 (matplotlib may raise anything, 1e308 an overflow)
        logger.warning("  the plots are not drawn: %s: %s", type(error).__name__, error)
        return []


def _ranked(study: optuna.Study, config: SearchConfig, folder: Path) -> list[dict[str, Any]]:
    """Return the trials, the best one first."""
    trials = [_entry(config, trial) for trial in study.get_trials(deepcopy=False) if counts(trial)]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    if not complete:
        reasons = sorted({str(trial["reason"]) for trial in trials if trial["reason"]})
        raise ConfigError([f"{folder}: no trial of {len(trials)} was completed", *reasons])
    running = sum(trial["state"] == "running" for trial in trials)
    if running:
        logger.info("  %d trials still run in other processes", running)
    sign = 1 if config.direction == "minimize" else -1
    trials.sort(key=lambda t: (t["state"] != "complete", sign * (t["value"] or 0), t["number"]))
    return trials


def _run_trial(
    study: optuna.Study,
    config: SearchConfig,
    folder: Path,
    started: Started,
    objective: Objective,
) -> None:
    """Run one trial and record how it ended; what only the best trial needs is removed."""
    trial = started.trial
    values = values_of(config.space, started.params)
    logger.info("trial %d: %s", trial.number, ", ".join(f"{k}={v}" for k, v in values.items()))
    place = point_folder(config, folder, values)
    began_s = time.monotonic()
    number = 0

    def on_heldout(_step: int, figures: Mapping[str, float]) -> None:
        nonlocal number
        number += 1
        trial.report(_comparable(config, figures), number)
        if trial.should_prune():
            raise optuna.TrialPruned

    state, value, reason = TrialState.COMPLETE, None, None
    try:
        value = objective(values, place, on_heldout)
        if not math.isfinite(value):
            state, reason, value = TrialState.FAIL, f"{config.metric} is {value}", None
    except optuna.TrialPruned:
        noun = "measurement" if number == 1 else "measurements"
        state, reason = TrialState.PRUNED, f"pruned after {number} held-out {noun}"
    except (ConfigError, DataError, VerdictError, GpuMemoryError, torch.OutOfMemoryError) as error:
        state, reason = TrialState.FAIL, str(error)
    except BaseException:  # the process ends, but its point did not kill it
        trial.set_user_attr("interrupted", True)
        raise
    trial.set_user_attr("wall_s", round(time.monotonic() - began_s, 3))
    if reason is not None:
        trial.set_user_attr("reason", reason)
    with study_lock(folder):
        study.tell(trial, value, state=state)
        best = _best(study)
        ended = [t for t in study.get_trials(deepcopy=False) if counts(t) and t.state.is_finished()]
        for other in (folder / "points").glob("*"):
            if not _is_kept(study, config, other, best):
                _keep_curves(other, folder / TRACKING / other.name)
                shutil.rmtree(other)
    is_best = best is not None and trial.number == best.number
    said = f"{config.metric} {value:.6g}" if value is not None else str(reason).split("\n")[0]
    said += ", the best" if is_best else ""
    num_ended, num_all = len(ended), num_points(config)
    logger.info("trial %d: %s; %d of %d points are done", trial.number, said, num_ended, num_all)


def _keep_curves(point: Path, place: Path) -> None:
    """Move the trackers' files of a point, which are small, so that its curves can be compared."""
    if (point / TRACKING).is_dir():
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        (point / TRACKING).rename(place)


def _comparable(config: SearchConfig, figures: Mapping[str, float]) -> float:
    """Return the figure of a measurement by which a trial is pruned; better in the direction.

    It is the metric itself if the training measures it, else the reward (the loss of GRPO says
    nothing), else the loss.
    """
    stage, _, figure = config.metric.partition(".")
    own = figure.removeprefix("best_")
    if stage == "adapter" and own in figures:
        return figures[own]
    better = figures["eval_reward"] if "eval_reward" in figures else -figures["eval_loss"]
    return better if config.direction == "maximize" else -better


def _is_kept(
    study: optuna.Study, config: SearchConfig, place: Path, best: FrozenTrial | None
) -> bool:
    """Return whether a directory is that of the best point, or of one that is not finished."""
    states = (TrialState.RUNNING, TrialState.WAITING)
    kept = [*study.get_trials(deepcopy=False, states=states), *filter(None, [best])]
    return any(
        point_folder(config, place.parents[1], values_of(config.space, params)) == place
        for trial in kept
        if (params := trial.params or trial.system_attrs.get("fixed_params"))
    )


def _best(study: optuna.Study) -> FrozenTrial | None:
    """Return the best trial; None if none is complete."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return study.best_trial if complete else None


def _pruner(config: SearchConfig) -> optuna.pruners.BasePruner:
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0)
    return optuna.pruners.NopPruner()


def _entry(config: SearchConfig, trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial for people and for JSON."""
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "values": values_of(config.space, trial.params) if trial.params else {},
        "wall_s": trial.user_attrs.get("wall_s"),
        "attempt": trial.user_attrs.get("attempt", 1),
        "reason": trial.user_attrs.get("reason"),
    }
