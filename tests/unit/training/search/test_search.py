"""A study on disk: shared by processes, continued after a kill, refused where it is another's."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.search.worker import work
from training.config.search import SearchConfig
from training.loop.progress import OnHeldout
from training.search.plots import worst_first
from training.search.search import _comparable, search_settings
from training.search.study import open_study
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DiskFullError,
    GpuMemoryError,
    VerdictError,
)
from tuneline.core.lock import locked_file

GRID = {"space": {"x": {"low": 1, "high": 5}}, "sampler": "grid", "pruner": "none"}
TPE = {"space": {"x": {"low": -8.0, "high": 8.0}}, "num_trials": 5, "pruner": "none"}


def _config(values: Mapping[str, Any], **changes: Any) -> SearchConfig:
    return SearchConfig.model_validate({**values, **changes})


def _search(
    folder: Path, config: SearchConfig, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    def objective(values: Mapping[str, Any], place: Path, _on_heldout: OnHeldout) -> float:
        place.mkdir(parents=True, exist_ok=True)
        return float((values["x"] - 3) ** 2)

    return search_settings(config, folder, objective, facts=facts or {}, first=None)


def _workers(folder: Path, config: dict[str, Any], *dies: int | None) -> list[int]:
    """Run one process per entry of `dies` at once, and return their exit statuses.

    An entry is the number of points after which the process kills itself in the next one.
    """
    context = multiprocessing.get_context("fork")  # the libraries are imported once
    settings = json.dumps(config)
    processes = [context.Process(target=work, args=(folder, settings, after)) for after in dies]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode or 0 for process in processes]


def _points(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "points.log").read_text().splitlines()]


@pytest.mark.parametrize("values", [GRID, TPE], ids=["grid", "tpe"])
def test_processes_share_a_study_and_run_no_point_twice(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    assert _workers(tmp_path, values, None, None) == [0, 0]
    points = [point["x"] for point in _points(tmp_path)]
    assert len(points) == 5 and len(set(points)) == 5
    found = _search(tmp_path, _config(values))  # nothing is left to try
    assert len(found["trials"]) == 5
    assert found["trials"][0]["value"] == min((x - 3) ** 2 for x in points)
    assert [Path(path).stat().st_size > 5000 for path in found["plots"]] == [True, True]


def test_a_killed_point_is_tried_again_and_finds_its_files(tmp_path: Path) -> None:
    assert _workers(tmp_path, GRID, 1) == [-signal.SIGKILL]
    assert len(_points(tmp_path)) == 1
    assert _workers(tmp_path, GRID, None) == [0]
    points = _points(tmp_path)
    assert sorted(point["x"] for point in points) == [1, 2, 3, 4, 5]
    assert [point["began_before"] for point in points].count(True) == 1
    trials = _search(tmp_path, _config(GRID))["trials"]
    assert sorted(trial["attempt"] for trial in trials) == [1] * 4 + [2]


def test_a_point_that_kills_its_process_is_given_up(tmp_path: Path) -> None:
    one = {**GRID, "space": {"x": {"low": 4, "high": 4}}}
    for _ in range(3):
        assert _workers(tmp_path, one, 0) == [-signal.SIGKILL]
    with pytest.raises(ConfigError, match="killed 3 times"):
        _search(tmp_path, _config(one))


def test_a_point_that_gets_further_each_time_is_not_given_up(tmp_path: Path) -> None:
    one = {**GRID, "space": {"x": {"low": 4, "high": 4}}}
    for step in (10, 20, 30, 40):
        assert _workers(tmp_path, one, 0) == [-signal.SIGKILL]
        (place,) = (tmp_path / "points").iterdir()
        (place / ".adapter-1.work" / f"checkpoint-{step}").mkdir(parents=True)
    (trial,) = _search(tmp_path, _config(one))["trials"]
    assert (trial["state"], trial["value"]) == ("complete", 1.0)


def test_the_end_of_a_trial_says_how_many_points_are_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        _search(tmp_path, _config(GRID))
    ended = [text.split("; ")[1] for text in caplog.messages if "points are done" in text]
    assert ended == [f"{number} of 5 points are done" for number in range(1, 6)]
    caplog.clear()
    with caplog.at_level("INFO"):
        _search(tmp_path, _config(GRID))
    assert caplog.messages == ["nothing is left to try of 5 points"]


def test_a_space_that_is_used_up_ends_the_search(tmp_path: Path) -> None:
    small = _config(GRID, sampler="tpe", num_trials=50)
    found = _search(tmp_path, small)
    assert sorted(trial["values"]["x"] for trial in found["trials"]) == [1, 2, 3, 4, 5]


def test_only_the_best_point_keeps_its_files(tmp_path: Path) -> None:
    def objective(values: Mapping[str, Any], place: Path, _on_heldout: OnHeldout) -> float:
        (place / "tracking").mkdir(parents=True)
        (place / "tracking" / "curve").write_text(str(values["x"]))
        return float((values["x"] - 3) ** 2)

    found = search_settings(_config(GRID), tmp_path, objective, facts={}, first=None)
    assert found["trials"][0]["values"] == {"x": 3}
    (best,) = (tmp_path / "points").iterdir()
    curves = [*tmp_path.glob("tracking/*/curve"), best / "tracking" / "curve"]
    assert sorted(curve.read_text() for curve in curves) == ["1", "2", "3", "4", "5"]


def test_worse_held_out_losses_than_the_median_prune(tmp_path: Path) -> None:
    def objective(values: Mapping[str, Any], _place: Path, on_heldout: OnHeldout) -> float:
        for step in range(1, 4):
            on_heldout(step, {"eval_loss": float(values["x"])})
        return float(values["x"])

    config = _config(GRID, pruner="median")
    trials = search_settings(config, tmp_path, objective, facts={}, first=None)["trials"]
    states = {trial["values"]["x"]: trial["state"] for trial in trials}
    assert states[1] == "complete" and states[5] == "pruned"
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert {trial["reason"] for trial in pruned} == {"pruned after 1 held-out measurement"}


@pytest.mark.parametrize(
    ("search", "figures", "reported"),
    [
        ({}, {"eval_loss": 2.0, "eval_margin": 9.0}, 2.0),
        ({"metric": "adapter.eval_margin", "direction": "maximize"},
         {"eval_loss": 2.0, "eval_margin": 9.0}, 9.0),
        ({"metric": "adapter.best_eval_exact_match", "direction": "maximize"},
         {"eval_loss": 2.0, "eval_exact_match": 0.5}, 0.5),
        ({"metric": "evaluation-tuned.exact_match", "direction": "maximize"},
         {"eval_loss": 2.0}, -2.0),
        # The loss of GRPO says nothing: it is 0 for a good model and for a bad one.
        ({"metric": "evaluation-preferences.reward", "direction": "maximize"},
         {"eval_loss": 0.0, "eval_reward": 0.7}, 0.7),
    ],
    ids=["loss", "own figure", "best figure", "another stage", "grpo"],
)  # fmt: skip
def test_a_trial_is_pruned_by_the_metric_if_the_training_measures_it(
    search: dict[str, Any], figures: dict[str, float], reported: float
) -> None:
    assert _comparable(_config(GRID, **search), figures) == reported


def test_a_trial_that_cannot_be_trained_does_not_end_the_search(tmp_path: Path) -> None:
    def objective(values: Mapping[str, Any], _place: Path, _on_heldout: OnHeldout) -> float:
        if values["x"] == 2:
            raise ConfigError("training: loss is nan at step 4")
        return float("nan") if values["x"] == 4 else float(values["x"])

    trials = search_settings(_config(GRID), tmp_path, objective, facts={}, first=None)["trials"]
    failed = {t["values"]["x"]: t["reason"] for t in trials if t["state"] == "fail"}
    assert failed == {2: "training: loss is nan at step 4", 4: "adapter.eval_loss is nan"}
    assert trials[0]["values"] == {"x": 1}


def test_a_lack_of_memory_or_a_failed_check_ends_only_its_trial(tmp_path: Path) -> None:
    def objective(values: Mapping[str, Any], _place: Path, _on_heldout: OnHeldout) -> float:
        if values["x"] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if values["x"] == 4:
            raise VerdictError("the merged model differs")
        if values["x"] == 5:
            raise GpuMemoryError("training: the GPU has too little memory")
        if values["x"] == 1:
            raise DataError("train.jsonl: line 2: 300 tokens are more than max_length 200")
        return float(values["x"])

    trials = search_settings(_config(GRID), tmp_path, objective, facts={}, first=None)["trials"]
    failed = {t["values"]["x"]: t["reason"] for t in trials if t["state"] == "fail"}
    assert failed == {
        2: "CUDA out of memory", 4: "the merged model differs",
        5: "training: the GPU has too little memory",
        1: "train.jsonl: line 2: 300 tokens are more than max_length 200",
    }  # fmt: skip
    assert sum(trial["state"] == "complete" for trial in trials) == 1


def test_an_error_that_stops_the_search_is_not_a_kill(tmp_path: Path) -> None:
    config = _config(GRID, space={"x": {"low": 4, "high": 4}})

    def broken(*_: Any) -> float:
        raise ZeroDivisionError("a bug")

    for _ in range(4):  # one more than the kills that a point may have
        with pytest.raises(ZeroDivisionError):
            search_settings(config, tmp_path, broken, facts={}, first=None)
    (trial,) = _search(tmp_path, config)["trials"]
    assert (trial["state"], trial["attempt"]) == ("complete", 1)


def test_a_drawn_number_is_the_number_of_its_step(tmp_path: Path) -> None:
    space = {"x": {"low": 0.1, "high": 0.7, "step": 0.1}}
    config = _config(TPE, space=space, num_trials=30)
    values = [trial["values"]["x"] for trial in _search(tmp_path, config)["trials"]]
    assert sorted(values) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_the_end_is_told_the_trials_under_the_lock_of_the_study(tmp_path: Path) -> None:
    told: list[Any] = []

    def on_end(trials: Any) -> None:
        with pytest.raises(BlockingIOError), locked_file(tmp_path / ".lock"):
            pass
        told.extend(trials)

    def objective(values: Mapping[str, Any], *_: Any) -> float:
        return float(values["x"])

    found = search_settings(_config(GRID), tmp_path, objective, facts={}, first=None, on_end=on_end)
    assert told == found["trials"] and len(told) == 5


@pytest.mark.parametrize(
    ("changes", "facts", "message"),
    [
        ({"direction": "maximize"}, {}, 'direction "minimize"; found "maximize"'),
        ({"space": {"x": {"low": 1, "high": 8}}}, {}, r"space\.x .*\"high\": 5.*\"high\": 8"),
        ({"metric": "adapter.loss"}, {}, 'metric "adapter.eval_loss"; found "adapter.loss"'),
        ({}, {"training.r": 8}, "training.r null; found 8"),
    ],
    ids=["direction", "space", "metric", "run"],
)
def test_a_study_of_other_settings_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], facts: dict[str, Any], message: str
) -> None:
    open_study(_config(GRID), tmp_path, {}, None)
    with pytest.raises(ConfigError, match=message) as caught:
        open_study(_config(GRID, **changes), tmp_path, facts, None)
    assert caught.value.exit_code == 2 and "search.study=NAME" in str(caught.value.hint)


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    import optuna

    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    optuna.create_study(study_name="theirs", storage=storage)
    with pytest.raises(ArtifactError, match="holds the study 'theirs' of another program"):
        open_study(_config(GRID), tmp_path, {}, None)


@pytest.mark.parametrize("content", [b"not a database at all, but some text\n" * 9, b"\0" * 4096])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not a study that can be read") as caught:
        open_study(_config(GRID), tmp_path, {}, None)
    assert caught.value.exit_code == 3
    assert (tmp_path / "study.db").read_bytes() == content


def _full(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON trials "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_full, DiskFullError, r"study\.db: the disk is full"),
        (Path.unlink, ArtifactError, r"study\.db: is not a study that can be read: \(sqlite3\."),
    ],
)
def test_a_database_that_fails_during_a_search_is_named(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    def objective(values: Mapping[str, Any], _place: Path, _on_heldout: OnHeldout) -> float:
        if values["x"] == 2:
            damage(tmp_path / "study.db")
        return float(values["x"])

    with pytest.raises(error, match=message):
        search_settings(_config(GRID), tmp_path, objective, facts={}, first=None)


def test_a_study_whose_maker_was_killed_is_made_again(tmp_path: Path) -> None:
    import optuna

    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    optuna.create_study(study_name="tuneline", storage=storage).enqueue_trial({"x": 1})
    study = open_study(_config(GRID), tmp_path, {}, None)
    assert [trial.system_attrs["fixed_params"]["x"] for trial in study.trials] == [1, 2, 3, 4, 5]
    with sqlite3.connect(tmp_path / "study.db") as database:
        assert database.execute("select count(*) from studies").fetchone() == (1,)


@pytest.mark.parametrize(("direction", "order"), [("minimize", [2, 3, 1]), ("maximize", [3, 1, 2])])
def test_the_best_trial_of_the_picture_is_that_of_the_result(
    direction: str, order: list[int]
) -> None:
    config = _config(GRID, direction=direction)
    states = {1: ("complete", 0.0), 2: ("complete", 1.0), 3: ("complete", 0.0), 4: ("fail", None)}
    trials = [{"number": n, "state": s, "value": value} for n, (s, value) in states.items()]
    assert [trial["number"] for trial in worst_first(trials, config)] == order


def test_plots_that_cannot_be_drawn_cost_no_result(tmp_path: Path) -> None:
    told: list[Any] = []
    config = _config(GRID, space={"x": {"low": 1, "high": 2}})
    found = search_settings(
        config, tmp_path, lambda *_: 1e308, facts={}, first=None,
        on_end=told.extend,
    )  # fmt: skip
    assert found["plots"] == []
    assert [trial["value"] for trial in told] == [1e308, 1e308]


def test_a_study_whose_trials_all_stopped_at_an_error_takes_other_settings(tmp_path: Path) -> None:
    class NoSuchFigureError(Exception):
        pass

    def objective(*_: object) -> float:
        raise NoSuchFigureError

    wrong = _config(TPE, metric="adapter.evalloss")
    with pytest.raises(NoSuchFigureError):
        search_settings(wrong, tmp_path, objective, facts={}, first=None)
    found = _search(tmp_path, _config(TPE, metric="adapter.eval_loss"))
    assert len(found["trials"]) == 5
    with pytest.raises(ConfigError, match="the study was made with metric"):
        _search(tmp_path, wrong)
