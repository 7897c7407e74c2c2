"""A study on disk: its identity, and its next point, which no other process tries.

The trials are in an SQLite file. A process holds a lock on a file for each trial that it runs; the
kernel lets go of the lock when the process dies, so a trial whose lock is free was killed. Its
point is tried again. All choices of points are made under one lock of the study.
"""

from __future__ import annotations

import contextlib
import json
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from training.config.search import SearchConfig
from training.search.space import distributions, grid_points, params_of, require_grid, values_of
from tuneline.core.artifact import canonical_digest, remove_command
from tuneline.core.digests import short_digest
from tuneline.core.disk import cannot_write
from tuneline.core.errors import ArtifactError, ConfigError, DiskFullError
from tuneline.core.lock import locked_file
from tuneline.core.progress import logger

DATABASE = "study.db"
STUDY = "tuneline"
DEFAULT_TRIALS = 20
MAX_ATTEMPTS = 3
"""Starts of a point whose process was killed before it got further; the third is the last."""
MAX_DRAWS = 20
"""Draws of a sampler that may be points of earlier trials; then an untried point is taken."""


@dataclass(frozen=True)
class Started:
    """A trial that this process runs, with the lock that says so."""

    trial: optuna.Trial
    params: dict[str, Any]
    lock: ExitStack


def open_study(
    config: SearchConfig, folder: Path, facts: Mapping[str, Any], first: Mapping[str, Any] | None
) -> optuna.Study:
    """Return the study of a folder, made if it is not there.

    Args:
        facts: The settings and files that its figures depend on, as JSON values by name.
        first: Values of the first point; None draws it.

    Raises:
        ConfigError: The study was made with other facts, or another direction or space.
        ArtifactError: The file is not such a study, or the folder cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    facts = {
        "direction": config.direction,
        "metric": config.metric,
        "grid": config.sampler == "grid",
        **{f"space.{name}": entry.model_dump() for name, entry in config.space.items()},
        **facts,
    }
    points = require_grid(config.space) if config.sampler == "grid" else []
    if not points and first is not None:
        points = [params_of(config.space, first)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    with study_lock(folder), named_database(folder):
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{folder / DATABASE}",
            engine_kwargs={"connect_args": {"timeout": 60}},
        )
        names = optuna.get_all_study_names(storage)
        if names and names != [STUDY]:
            raise ArtifactError(
                f"{folder / DATABASE}: holds the study {names[0]!r} of another program",
                hint="Try: --set search.study=NAME, with a name that is not used yet.",
            )
        if names:
            study = optuna.load_study(study_name=STUDY, storage=storage)
            if "facts" in study.user_attrs and (
                study.user_attrs["facts"] == json.loads(json.dumps(facts))
                or not _has_stopped(study)
            ):
                _require_same(folder, study.user_attrs["facts"], facts)
                return study
            # Its maker was killed, or all its trials stopped at an error that a setting mends.
            optuna.delete_study(study_name=STUDY, storage=storage)
        study = optuna.create_study(study_name=STUDY, storage=storage, direction=config.direction)
        for point in points:
            study.enqueue_trial(point)
        study.set_user_attr("facts", json.loads(json.dumps(facts)))
        return study


def _has_stopped(study: optuna.Study) -> bool:
    """Return whether an error stopped every trial that began, so that there is no result."""
    began = [
        trial for trial in study.get_trials(deepcopy=False)
        if counts(trial) and trial.state != TrialState.WAITING
    ]  # fmt: skip
    return bool(began) and all(
        trial.state == TrialState.RUNNING and "interrupted" in trial.user_attrs for trial in began
    )


def next_trial(study: optuna.Study, config: SearchConfig, folder: Path) -> Started | None:
    """Start the next trial; None if the study has as many as it should, or no point is left."""
    with study_lock(folder):
        _retry_killed(study, config, folder)
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        used = [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]
        wanted = config.num_trials or (len(used) if config.sampler == "grid" else DEFAULT_TRIALS)
        if len(used) - len(waiting) >= wanted:
            return None
        if config.sampler == "grid" and not waiting:
            return None
        for _ in range(MAX_DRAWS):
            started = _ask(study, config, folder)
            if started is not None:
                return started
        return _untried(study, config, folder)


def num_points(config: SearchConfig) -> int:
    """Return how many points a search tries.

    Raises:
        ConfigError: A grid has no end.
    """
    points = require_grid(config.space) if config.sampler == "grid" else grid_points(config.space)
    wanted = config.num_trials or (
        len(points or ()) if config.sampler == "grid" else DEFAULT_TRIALS
    )
    return wanted if points is None else min(wanted, len(points))


def counts(trial: FrozenTrial) -> bool:
    """Return whether a trial is a point of its own: not one that was drawn twice or tried again."""
    return not {"repeats", "retried"} & set(trial.user_attrs)


def point_folder(config: SearchConfig, folder: Path, values: Mapping[str, Any]) -> Path:
    """Return the directory of a point, which depends on its values only."""
    named = {name: values[name] for name in config.space}
    return folder / "points" / short_digest(canonical_digest(named))


@contextlib.contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from choosing points."""
    with locked_file(folder / ".lock", wait=True):
        yield


def _ask(study: optuna.Study, config: SearchConfig, folder: Path) -> Started | None:
    """Start a trial; None if its point was tried before."""
    earlier = {
        _key(config, trial.params): trial.number
        for trial in study.get_trials(deepcopy=False)
        if trial.params and counts(trial)
    }
    study.sampler = _sampler(config, len(study.get_trials(deepcopy=False)))
    space = distributions(config.space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a first point outside the space is what run.yaml has
        trial = study.ask(space)
    params = dict(trial.params)
    known = earlier.get(_key(config, params))
    if known is not None:
        trial.set_user_attr("repeats", known)
        study.tell(trial, state=TrialState.FAIL)
        return None
    trial.set_user_attr("saved", _saved(config, folder, params))
    lock = ExitStack()
    lock.enter_context(locked_file(_lock_path(folder, trial.number)))
    return Started(trial, params, lock)


def _untried(study: optuna.Study, config: SearchConfig, folder: Path) -> Started | None:
    """Start a trial at a point of a finite space that nobody tried; None if there is none."""
    trials = study.get_trials(deepcopy=False)
    tried = {_key(config, trial.params) for trial in trials if trial.params}
    points = grid_points(config.space) or []
    left = [point for point in points if _key(config, point) not in tried]
    if not left:
        logger.info("  every point of the space was tried")
        return None
    study.enqueue_trial(random.Random(config.seed).choice(left))
    return _ask(study, config, folder)


def _retry_killed(study: optuna.Study, config: SearchConfig, folder: Path) -> None:
    """Put the points of killed processes back into the queue.

    A process that was killed after it got further than the one before does not count: a machine
    that is taken away often is not a fault of the point.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        try:
            with locked_file(_lock_path(folder, trial.number)):
                pass  # the lock is free: its process is gone
        except BlockingIOError:
            continue
        live = optuna.Trial(study, trial._trial_id)
        attempt = int(trial.user_attrs.get("attempt", 1))
        if trial.params and _saved(config, folder, trial.params) > trial.user_attrs.get(
            "saved", [0, 0]
        ):
            attempt = 1
        attempt += "interrupted" not in trial.user_attrs
        if trial.params and attempt <= MAX_ATTEMPTS:
            study.enqueue_trial(trial.params, user_attrs={"attempt": attempt})
            live.set_user_attr("retried", True)
            logger.info("  trial %d was interrupted; its point is tried again", trial.number)
        elif trial.params:
            live.set_user_attr("reason", f"its process was killed {MAX_ATTEMPTS} times")
        else:
            live.set_user_attr("retried", True)  # killed before it had a point
        study.tell(trial.number, state=TrialState.FAIL)


def _saved(config: SearchConfig, folder: Path, params: Mapping[str, Any]) -> list[int]:
    """Return how far a point is: its artifacts, and the step of its newest checkpoint."""
    place = point_folder(config, folder, values_of(config.space, params))
    steps = [path.name.rpartition("-")[2] for path in place.glob(".*.work/checkpoint-*")]
    return [
        len(list(place.glob("*/manifest.json"))),
        max([int(step) for step in steps if step.isdecimal()], default=0),
    ]


def _sampler(config: SearchConfig, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of a trial; each trial has a seed of its own, so two processes differ."""
    seed = config.seed * 1_000_003 + number
    if config.sampler == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _require_same(folder: Path, earlier: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(facts))
    names = [*now, *(name for name in earlier if name not in now)]
    different = [name for name in names if earlier.get(name) != now.get(name)]
    if different:
        raise ConfigError(
            [
                f"{folder}: the study was made with {name} {json.dumps(earlier.get(name))}; found "
                f"{json.dumps(now.get(name))}"
                for name in different
            ],
            hint="Its trials are not comparable. Try: --set search.study=NAME, with a name that "
            f"is not used yet, or remove the study: {remove_command(folder)}",
        )


@contextlib.contextmanager
def named_database(folder: Path) -> Iterator[None]:
    """Name the database of a study in the errors of its reader.

    Raises:
        DiskFullError: The disk is full.
        ArtifactError: The database is damaged, or gone.
    """
    path = folder / DATABASE
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = str(error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error)
        if "disk is full" in cause:
            raise DiskFullError(
                f"{path}: the disk is full",
                hint="Free some space and run the same command again; finished trials are kept.",
            ) from None
        raise ArtifactError(
            f"{path}: is not a study that can be read: {cause.splitlines()[0]}",
            hint="Try: --set search.study=NAME, with a name that is not used yet.",
        ) from None


def _lock_path(folder: Path, number: int) -> Path:
    locks = folder / "locks"
    locks.mkdir(exist_ok=True)
    return locks / f"trial-{number}"


def _key(config: SearchConfig, params: Mapping[str, Any]) -> str:
    """Return the identity of a point, which its values decide."""
    return json.dumps(values_of(config.space, params), sort_keys=True)
