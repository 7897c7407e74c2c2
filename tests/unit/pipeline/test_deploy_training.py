"""`deploy render --training`: the run.yaml of the pods, and the files that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from training.launch.place import (
    find_place,
    is_follower,
    is_placed,
    meeting_point,
    node_rank,
)
from tuneline.core.errors import ConfigError
from tuneline.pipeline.deploy_training import render_run_training
from tuneline.pipeline.run_config import load_run

TRAINING = {"image": "registry.example.com/tuneline-training:1", "work_claim": "work"}


def write_run(folder: Path, **values: Any) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_text("{}\n")
    (folder / "base").mkdir()
    content = {
        "name": "tickets",
        "base_model": "base",
        "data": {"path": "data/train.jsonl", "system_prompt": "Answer in data/train.jsonl."},
        "training": {"learning_rate": 1e-4},
        "k8s": {"training": TRAINING},
        **values,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    return folder / "run.yaml"


def rendered(path: Path, out: Path, *overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    tree, files = render_run_training(load_run(path, overrides), out)
    config_map = yaml.safe_load((tree / "config-map.yaml").read_text())
    found: dict[str, Any] = yaml.safe_load(config_map["data"]["run.yaml"])
    return found, files


def test_files_have_their_paths_in_a_pod(tmp_path: Path) -> None:
    found, files = rendered(write_run(tmp_path / "in"), tmp_path / "out")
    assert found["base_model"] == "/work/data/base"
    assert found["data"]["path"] == "/work/data/data/train.jsonl"
    assert found["data"]["system_prompt"] == "Answer in data/train.jsonl."
    assert found["training"] == {"learning_rate": 1e-4}
    assert "k8s" not in found
    assert files == {
        str(tmp_path / "in" / "base"): "/work/data/base",
        str(tmp_path / "in" / "data" / "train.jsonl"): "/work/data/data/train.jsonl",
    }


def test_the_modules_of_a_metric_are_files_of_the_pods(tmp_path: Path) -> None:
    path = write_run(tmp_path / "in", evaluation={"python": "code/metric.py:score"})
    (path.parent / "code").mkdir()
    for name, text in (("metric.py", "import tl_words\n"), ("tl_words.py", ""), ("other.py", "")):
        (path.parent / "code" / name).write_text(text)
    found, files = rendered(path, tmp_path / "out")
    assert found["evaluation"]["python"] == "/work/data/code/metric.py:score"
    code = {file: there for file, there in files.items() if file.endswith(".py")}
    assert code == {
        str(path.parent / "code" / name): f"/work/data/code/{name}"
        for name in ("metric.py", "tl_words.py")
    }


def distillation(teacher: str) -> dict[str, Any]:
    return {"method": {"type": "distillation", "teacher_model_name_or_path": teacher}}


@pytest.mark.parametrize(
    ("teacher", "in_pod"),
    [
        ("base", "/work/data/base"),  # a folder here
        ("elsewhere", "/work/data/elsewhere"),  # no id of the Hub: a folder of the claim
        ("runs/large/model-0123456789", "/work/data/runs/large/model-0123456789"),
        ("org/teacher", "org/teacher"),
        ("tiny-base", "tiny-base"),
    ],
)
def test_a_teacher_is_a_folder_of_the_pods_or_a_name_on_the_hub(
    tmp_path: Path, teacher: str, in_pod: str
) -> None:
    path = write_run(tmp_path / "in", base_model="tiny-base", training=distillation(teacher))
    found, files = rendered(path, tmp_path / "out")
    assert found["training"]["method"]["teacher_model_name_or_path"] == in_pod
    assert (in_pod in files.values()) == in_pod.startswith("/work")


def test_rewards_are_files_of_the_pods_whether_or_not_they_are_here(tmp_path: Path) -> None:
    method = {"type": "grpo", "reward_funcs": ["rewards.py:score", "code/other.py:score"]}
    path = write_run(tmp_path / "in", training={"method": method})
    (path.parent / "rewards.py").write_text("import tl_words\n")
    (path.parent / "tl_words.py").write_text("")
    found, files = rendered(path, tmp_path / "out")
    assert found["training"]["method"]["reward_funcs"] == [
        "/work/data/rewards.py:score", "/work/data/code/other.py:score",
    ]  # fmt: skip
    code = {there for there in files.values() if there.endswith(".py")}
    assert code == {f"/work/data/{name}" for name in ("rewards.py", "tl_words.py", "code/other.py")}


def test_the_values_that_a_search_tries_are_files_of_the_pods(tmp_path: Path) -> None:
    key = "training.method.teacher_model_name_or_path"
    space = {
        "base_model": {"choices": ["base", "org/model"]},
        "training.learning_rate": {"low": 1e-5, "high": 1e-3},
        key: {"choices": ["base", "large"]},
    }
    path = write_run(tmp_path / "in", training=distillation("base"), search={"space": space})
    found, files = rendered(path, tmp_path / "out")
    assert found["search"]["space"] == {
        "base_model": {"choices": ["/work/data/base", "org/model"]},
        "training.learning_rate": {"low": 1e-5, "high": 1e-3},
        key: {"choices": ["/work/data/base", "/work/data/large"]},
    }
    assert {"/work/data/base", "/work/data/large"} < set(files.values())


def test_the_pods_read_the_run_yaml_that_was_rendered(tmp_path: Path) -> None:
    path = write_run(tmp_path / "in")
    found, _ = rendered(path, tmp_path / "out", "training.seed=3")
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(found))
    pods, here = load_run(tmp_path / "pod.yaml").config, load_run(path, ["training.seed=3"]).config
    assert pods.training == here.training
    assert pods.evaluation == here.evaluation
    assert pods.data.heldout_fraction == here.data.heldout_fraction


def test_names_on_the_hub_and_data_in_storage_stay(tmp_path: Path) -> None:
    training = {**TRAINING, "data_url": "s3://data/tickets"}
    path = write_run(
        tmp_path / "in",
        base_model="org/model",
        data={"sources": [{"path": "hf:org/data"}, {"path": "rows.jsonl"}]},
        k8s={"training": training},
    )
    found, files = rendered(path, tmp_path / "out")
    assert found["base_model"] == "org/model"
    assert [s["path"] for s in found["data"]["sources"]] == [
        "hf:org/data",
        "/data/files/rows.jsonl",
    ]
    # Where the file goes: an init container copies it from there.
    assert list(files.values()) == ["s3://data/tickets/rows.jsonl"]


@pytest.mark.parametrize("name", ["../train.jsonl", "/srv/train.jsonl"])
def test_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path / "in", data={"path": name})
    with pytest.raises(ConfigError, match=r"data\.path: .* is not below the folder of run\.yaml"):
        rendered(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_the_section_is_told_what_to_type(tmp_path: Path) -> None:
    path = write_run(tmp_path / "in", k8s={})
    with pytest.raises(ConfigError, match=r"k8s\.training: missing"):
        rendered(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("job", "launch", "message"),
    [
        ({"hosts": 2}, None, r"training\.hosts is 2; training\.launch\.nodes is 1;"),
        ({"hosts": 2}, {"processes": 1, "nodes": 4}, r"hosts is 2; training\.launch\.nodes is 4;"),
        ({}, {"processes": 1, "nodes": 2}, r"hosts is 1; training\.launch\.nodes is 2;"),
        ({"resources": {"gpus": 4}}, None, r"gpus is 4; training\.launch\.processes is 1;"),
        (
            {"hosts": 2, "resources": {"gpus": 1}},
            {"processes": 2, "nodes": 2},
            r"gpus is 1; training\.launch\.processes is 2;",
        ),
        (
            {"hosts": 2},
            {"processes": 1, "nodes": 2, "rendezvous": "lab-1:29500"},
            r"rendezvous is lab-1:29500; expected none",
        ),
    ],
)
def test_pods_that_are_not_the_hosts_of_the_launch_are_refused(
    tmp_path: Path, job: dict[str, Any], launch: dict[str, Any] | None, message: str
) -> None:
    path = write_run(
        tmp_path / "in",
        training={"gradient_accumulation_steps": 8, "launch": launch},
        k8s={"training": {**TRAINING, "kind": "job-set", **job}},
    )
    with pytest.raises(ConfigError, match=message) as caught:
        rendered(path, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_variables_of_a_job_set_place_the_processes(tmp_path: Path, processes: int) -> None:
    hosts = 3
    path = write_run(
        tmp_path / "in",
        training={
            "gradient_accumulation_steps": 6,
            "launch": {"processes": processes, "nodes": hosts},
        },
        k8s={"training": {**TRAINING, "kind": "job-set", "hosts": hosts}},
    )
    rendered(path, tmp_path / "out")
    (job_set,) = yaml.safe_load_all((tmp_path / "out" / "workload.yaml").read_text())
    (replicated,) = job_set["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    launch = load_run(path).config.training.launch
    assert launch is not None
    for index in range(hosts):
        variables = {
            entry["name"]: entry.get("value", str(index))  # the other values are the pod's index
            for entry in container["env"]
        }
        assert is_follower(launch, variables) == (index > 0)
        assert meeting_point(launch, variables) == ("tickets-train-node-0-0.tickets-train", 29500)
        # With one process in each pod, the pod trains itself; else it starts its processes.
        assert is_placed(launch, variables) == (processes == 1)
        if processes == 1:
            place = find_place(launch, variables)
            assert (place.rank, place.local_rank, place.size) == (index, 0, hosts)
        else:
            assert node_rank(launch, variables) == index
