"""`deploy render --training`: the manifests of a training, from a run.yaml without artifacts."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from k8s import render_training
from k8s.training_config import TrainingJob
from training.config.launch import LaunchConfig
from tuneline.core.errors import ConfigError
from tuneline.core.python_file import imported_files
from tuneline.models.source import EMBEDDED, is_hub_name
from tuneline.pipeline.run_config import Run

SECTIONS = ("base_model", "data", "training", "evaluation", "reference")
PATHS = ("path", "heldout_path", "reward_funcs", "python", "json_schema")
"""Keys whose value is a path, whether or not the file is on this machine."""
MODELS = ("base_model", "teacher_model_name_or_path")
"""Keys whose value is a folder or a Hugging Face id."""


def render_run_training(run: Run, out: Path) -> tuple[Path, dict[str, str]]:
    """Write the kustomize tree that trains a run in the cluster.

    Returns:
        The directory, and the files that run.yaml names: their path here, and where they go: the
        path in a pod, or the place in object storage from which the pods copy them.

    Raises:
        ConfigError: The section `k8s` has no `training`; a path leaves the folder of run.yaml; pods
            and GPUs are not those of `training.launch`; or the manifests break a rule.
        ArtifactError: `out` exists and was not rendered, or was changed since.
    """
    config = run.config.k8s
    files: dict[str, str] = {}
    document = run.config.model_dump(mode="json", exclude_unset=True)
    document.pop("k8s", None)
    if config.training is not None:
        folder = config.training.data_folder
        problems = _launch_problems(config.training, run.config.training.launch)
        for section in SECTIONS:
            if section in document:
                document[section] = _moved(run, section, document[section], folder, files, problems)
        for key, tried in document.get("search", {}).get("space", {}).items():
            if "choices" in tried:
                found = _moved(run, key, tried["choices"], folder, files, problems)
                tried["choices"] = found
        if problems:
            raise ConfigError(problems)
        if (url := config.training.data_url) is not None:
            for here, there in files.items():
                files[here] = url.rstrip("/") + there.removeprefix(folder)
    return render_training(config, name=run.config.name, run_config=document, out=out), files


def _launch_problems(job: TrainingJob, launch: LaunchConfig | None) -> list[str]:
    """Return where the pods of a training would not be the hosts of its processes."""
    nodes, processes = (1, 1) if launch is None else (launch.nodes, launch.processes)
    problems = []
    if job.hosts != nodes:
        problems.append(
            f"k8s.training.hosts is {job.hosts}; training.launch.nodes is {nodes}; expected the "
            "same number, because each pod is one host of the training"
        )
    if launch is not None and launch.rendezvous is not None:
        problems.append(
            f"training.launch.rendezvous is {launch.rendezvous}; expected none, because the pods "
            "find one another by their own names; try --set training.launch.rendezvous=null"
        )
    gpus = job.resources.gpus
    if gpus is not None and gpus != processes:
        problems.append(
            f"k8s.training.resources.gpus is {gpus}; training.launch.processes is {processes}; "
            "expected the same number, because each process uses one GPU"
        )
    return problems


def _moved(
    run: Run, key: str, value: Any, folder: str, files: dict[str, str], problems: list[str]
) -> Any:
    """Return a value of run.yaml in which each file has its path in a pod.

    The folder of run.yaml is `folder` in a pod, so the path below it stays.
    """
    if isinstance(value, dict):
        return {
            name: _moved(run, f"{key}.{name}", inner, folder, files, problems)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_moved(run, key, inner, folder, files, problems) for inner in value]
    if not isinstance(value, str) or not _is_file(run, key, value):
        return value
    name = value.partition(":")[0]  # `rewards.py:function` names a function of a file
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        problems.append(
            f"{run.path}: {key}: {value} is not below the folder of run.yaml; expected a relative "
            "path without `..`, which is the same in the cluster"
        )
        return value
    here = run.resolve(name)
    modules = imported_files(here) if path.suffix == ".py" else []
    for file in (here, *modules):
        below = file.relative_to(here.parent)
        files[str(file)] = str(PurePosixPath(folder, path.parent, below.as_posix()))
    return f"{folder}/{value}"


def _is_file(run: Run, key: str, value: str) -> bool:
    """Return whether a value is a path on this machine: by its key, or because the file is here."""
    name = value.partition(":")[0]
    if not value or value == EMBEDDED or "://" in value or value.startswith("hf:"):
        return False
    last = key.rpartition(".")[2]
    if last in PATHS or (last in MODELS and not is_hub_name(value)):
        return True
    if not ("/" in name or "." in name):
        return False
    try:
        return run.resolve(name).exists()
    except OSError:
        return False  # a text that is longer than a path may be
