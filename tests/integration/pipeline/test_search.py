"""`tuneline search` on a small line: the best point becomes a run.yaml, trained already."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import tuneline_here
from tests.integration.pipeline.small_line import tuneline, write_run
from training.config import TrainingConfig
from training.search.figures import training_figures

SPACE: dict[str, Any] = {
    "training.learning_rate": {"choices": [1e-6, 2e-3]},
    "training.r": {"choices": [2]},
}


def _write(folder: Path, **search: Any) -> Path:
    run = write_run(folder)
    values = yaml.safe_load(run.read_text())
    values["search"] = {"space": SPACE, "sampler": "grid", **search}
    values["training"] |= {"report_to": [], "target_modules": ["q_proj"]}
    lines = (folder / "train.jsonl").read_text().splitlines()[:48]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    run.write_text(yaml.safe_dump(values))
    return run


def test_the_best_point_is_written_as_a_run_that_is_trained(tmp_path: Path) -> None:
    run = _write(tmp_path)
    done = tuneline(run, "search")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    best, other = document["trials"]
    assert best["values"] == {"training.learning_rate": 2e-3, "training.r": 2}
    assert best["value"] < other["value"] and other["state"] == "complete"
    winner = tmp_path / "run.best.yaml"
    assert Path(document["winner"]) == winner
    text = winner.read_text()
    assert f"adapter.eval_loss: {best['value']:.6g} in trial {best['number']}" in text
    values = yaml.safe_load(text)
    assert values["training"]["learning_rate"] == 2e-3 and values["training"]["r"] == 2
    assert "search" not in values and values["data"]["path"] == "train.jsonl"
    planned = json.loads(tuneline(winner, "plan").stdout)
    states = {entry["stage"]: entry["state"] for entry in planned}
    assert states["dataset"] == states["adapter"] == "current"
    assert len(list((tmp_path / "runs" / "small" / "search" / "points").iterdir())) == 1

    (made,) = (tmp_path / "runs" / "small").glob("adapter-*")
    figures = json.loads((made / "manifest.json").read_text())["metrics"]
    numbers = {n for n, v in figures.items() if isinstance(v, int | float) and v is not True}
    told = training_figures(TrainingConfig.model_validate(values["training"]))
    assert numbers - {"servable_as_adapter"} == set(told)

    again = tuneline(run, "search")  # every point was tried: nothing is trained
    assert json.loads(again.stdout)["trials"] == document["trials"]
    assert "trial" not in again.stderr
    plain = tuneline_here("search", str(run), "--runs-dir", str(tmp_path / "runs"))
    command = ["tuneline", "up", str(winner), "--runs-dir", str(tmp_path / "runs")]
    assert plain.stdout.splitlines()[-1] == f"Next: {shlex.join(command)}"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("run.yaml", "run.yaml: exists, and Tuneline did not write it"),
        ("other/best.yaml", "lead to other files from there"),
    ],
)
def test_the_winner_takes_no_place_where_it_does_harm(
    tmp_path: Path, out: str, message: str
) -> None:
    run = _write(tmp_path)
    text = run.read_text()
    done = tuneline(run, "search", "--out", str(tmp_path / out))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert run.read_text() == text and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": {"training.lerning_rate": {"choices": [1]}}},
         "search.space.training.lerning_rate: unknown key; expected a key of run.yaml by its "
         "path. Write training.learning_rate\n"),
        ({"space": {"training.lora_r": {"choices": [4]}}}, "by its path. Write training.r\n"),
        ({"space": {"training.r": {"low": 0, "high": 8}}}, "space.training.r: input should"),
        ({"space": {"training.save_steps": {"low": 1, "high": 9}}}, "cannot change adapter.eval"),
        ({"space": {"serving.port": {"low": 1, "high": 9}}}, "cannot change adapter.eval_loss"),
        ({"space": {"name": {"choices": ["a", "b"]}}}, "name: is not a setting of a training"),
        ({"metric": "adaptor.eval_loss"}, "Try: --set search.metric=adapter.eval_loss"),
        ({"metric": "adapter.evalloss"}, "Try: --set search.metric=adapter.eval_loss"),
        ({"metric": "evaluation-tuned.fields", "direction": "maximize"},
         "Try: --set search.metric=evaluation-tuned.metrics.fields.value"),
        ({"metric": "eval_loss"}, "search.metric: expected a stage and its figure, such as "
         "adapter.eval_loss; found 'eval_loss'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["search", "check"])
def test_a_search_that_cannot_work_is_refused_before_any_training(
    tmp_path: Path, search: dict[str, Any], message: str, command: str
) -> None:
    done = tuneline(_write(tmp_path, **search), command)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not list(tmp_path.glob("runs/small/search/points/*"))


def test_a_search_without_a_space_is_refused(tmp_path: Path) -> None:
    done = tuneline(_write(tmp_path, space={}), "search")
    assert done.returncode == 2 and "search.space: is empty" in done.stderr


def test_check_says_what_a_search_does_and_which_values_it_cannot_train(tmp_path: Path) -> None:
    choices = [["q_proj"], ["q_prj"]]
    space = {
        "training.target_modules": {"choices": choices},
        "training.max_length": {"choices": [8, 256]},
    }
    run = _write(tmp_path, space=space)
    done = tuneline(run, "check")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["search"] == (
        "minimize adapter.eval_loss by training.max_length, training.target_modules; 4 trials of "
        "grid"
    )
    length, warning = document["warnings"]
    assert length.startswith("search.space.training.max_length: 8 is less than the ")
    assert warning.startswith('search.space.training.target_modules: ["q_prj"] cannot be trained')
