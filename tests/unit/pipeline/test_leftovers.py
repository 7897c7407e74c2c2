"""The folders that `tuneline clean` finds, keeps and removes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import tuneline_here
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.lock import locked_file
from tuneline.core.release import RELEASE_KIND
from tuneline.pipeline.leftovers import STAGES, find_leftovers
from tuneline.pipeline.plan import plan
from tuneline.pipeline.run_config import Run, load_run
from tuneline.pipeline.stages import stages

CONFIG = """
name: small
data: {path: train.jsonl, heldout_path: heldout.jsonl}
training: {learning_rate: RATE}
"""
OLD, OTHER = "0123456789", "abcdef0123"


def artifact(path: Path, kind: str, *made_from: Artifact) -> Artifact:
    inputs = [one.as_input("part") for one in made_from]
    with new_artifact(path, kind, config={}, inputs=inputs) as draft:
        (draft.dir / "file").write_text(path.name)
    return open_artifact(path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose dataset is made; its adapter is stale, and later stages wait."""
    for name in ("train.jsonl", "heldout.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a", "completion": "b"}\n')
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.replace("RATE", "2.0e-3"))
    run = load_run(path, runs_dir=tmp_path / "runs")
    artifact(next_of(run, "dataset"), "dataset")
    return run


def next_of(run: Run, stage: str) -> Path:
    (path,) = [entry.path for entry in plan(run) if entry.stage.name == stage]
    assert path is not None
    return path


def found(run: Run) -> list[str]:
    return [one.path.name for one in find_leftovers(run).found]


def test_artifacts_of_another_configuration_are_leftovers(run: Run) -> None:
    artifact(run.dir / f"dataset-{OLD}", "dataset")
    artifact(run.dir / f"adapter-{OLD}", "adapter")
    artifact(run.dir / f"onnx-int8-{OLD}", "onnx")
    artifact(run.dir / f"parity-onnx-int8-{OLD}", "parity")
    assert found(run) == [
        f"adapter-{OLD}", f"dataset-{OLD}", f"onnx-int8-{OLD}", f"parity-onnx-int8-{OLD}"
    ]  # fmt: skip


def test_stages_that_wait_keep_their_artifacts(run: Run) -> None:
    artifact(run.dir / f"model-{OLD}", "model")
    assert found(run) == []
    assert find_leftovers(run).undecided == ["model"]


def test_a_release_keeps_all_that_it_was_made_from(run: Run) -> None:
    old = artifact(run.dir / f"dataset-{OLD}", "dataset")
    trained = artifact(run.dir / f"adapter-{OLD}", "adapter", old)
    artifact(run.dir / f"adapter-{OTHER}", "adapter", old)
    artifact(run.dir / f"release-{OLD}", RELEASE_KIND, trained)
    assert found(run) == [f"adapter-{OTHER}"]


def test_another_run_file_of_the_same_name_keeps_its_artifacts(run: Run) -> None:
    best = run.path.with_name("run.best.yaml")
    best.write_text(CONFIG.replace("RATE", "9.0e-3"))
    theirs = next_of(load_run(best, runs_dir=run.dir.parent), "adapter")
    artifact(theirs, "adapter")
    run.path.with_name("compose.yaml").write_text("services: [")
    run.path.with_name("other.yaml").write_text("name: other\nunknown: 1\n")
    assert found(run) == []
    best.unlink()
    assert found(run) == [theirs.name]


def test_unfinished_work_is_kept_if_its_stage_would_go_on_with_it(run: Run) -> None:
    for name in (next_of(run, "adapter").name, f"adapter-{OLD}"):
        for end in ("work", "partial"):
            (run.dir / f".{name}.{end}").mkdir()
    assert found(run) == [f".adapter-{OLD}.partial", f".adapter-{OLD}.work"]


def test_what_a_killed_search_linked_is_a_leftover_though_its_stage_is_current(run: Run) -> None:
    name = next_of(run, "dataset").name
    (run.dir / f".{name}.linked").mkdir()
    (run.dir / f".model-{OLD}.linked").mkdir()
    assert found(run) == [f".{name}.linked", f".model-{OLD}.linked"]


LINKS = """
import os, sys
from pathlib import Path
from tuneline.pipeline import search
link, linked = search._link, []
def link_or_die(source, target):
    if linked:
        os.kill(os.getpid(), 9)
    linked.append(link(source, target))
search._link = link_or_die if sys.argv[3] == "killed" else link
search.link_artifacts(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_search_that_was_killed_while_it_linked_links_again(tmp_path: Path) -> None:
    name = f"adapter-{OLD}"
    artifact(tmp_path / "from" / name, "adapter")
    ends = []
    for end in ("killed", "whole"):
        words = [sys.executable, "-c", LINKS, str(tmp_path / "from"), str(tmp_path / "to"), end]
        status = subprocess.run(words, check=False).returncode
        ends.append((status, [path.name for path in (tmp_path / "to").iterdir()]))
    assert ends == [(-9, [f".{name}.linked"]), (0, [name])]
    assert open_artifact(tmp_path / "to" / name).kind == "adapter"


@pytest.mark.parametrize(
    "name", [f"notes-{OLD}", f"tune-{OLD}", "search", "tracking", "model-old", f"x-model-{OLD}-y"]
)
def test_other_folders_stay(run: Run, name: str) -> None:
    artifact(run.dir / name, "model")
    assert found(run) == []


def test_the_command_lists_first_and_removes_when_told(run: Run) -> None:
    artifact(run.dir / f"adapter-{OLD}", "adapter")
    words = ("clean", str(run.path), "--runs-dir", str(run.dir.parent))
    listed = tuneline_here(*words)
    assert listed.returncode == 0
    assert f"adapter-{OLD}" in listed.stdout
    assert f"Try: tuneline {' '.join(words)} --remove" in listed.stdout
    assert (run.dir / f"adapter-{OLD}").is_dir()
    with locked_file(run.dir / ".lock"):
        refused = tuneline_here(*words, "--remove")
    assert refused.returncode == 3
    assert "another tuneline works in this directory" in refused.stderr
    document = json.loads(tuneline_here(*words, "--remove", "--json").stdout)
    assert document["removed"]
    assert [Path(one["path"]).name for one in document["found"]] == [f"adapter-{OLD}"]
    assert document["size_bytes"] > len(f"adapter-{OLD}")
    left = [path.name for path in run.dir.iterdir()]
    assert sorted(left) == [".lock", next_of(run, "dataset").name]
    assert "nothing to remove" in tuneline_here(*words).stdout


@pytest.mark.parametrize(
    "more",
    [
        "evaluation: {forgetting: true}\nexport: {forms: [onnx-int8, torch-export]}",
        "training: {method: {type: dpo}}",
        "training: {method: {type: reward}}\nserving: {routes: [pooling]}",
        "training: {method: {type: embedding}}\nserving: {routes: [embeddings]}",
    ],
)
def test_the_folders_of_every_stage_are_known(more: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"name: small\ndata: {{path: train.jsonl}}\n{more}\n")
    names = {stage.name for stage in stages(load_run(path))}
    assert len(names) >= 4
    assert names - STAGES == set()
