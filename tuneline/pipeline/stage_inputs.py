"""The inputs of stages besides other stages' artifacts: files of the user and the base model."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from serving.config import FILE_FLAGS, flag_name
from tuneline.core.artifact import Input, canonical_digest, file_input, open_artifact
from tuneline.core.errors import DataError
from tuneline.core.files import MANIFEST, file_sha256
from tuneline.core.python_file import imported_files
from tuneline.models.source import ModelSource, folder_digest
from tuneline.pipeline.run_config import Run

SPECULATION = "speculative_config"
"""The flag of vLLM whose key `model` may be the folder of a drafter."""


def base_input(_run: Run, base: ModelSource) -> list[Input]:
    return [base.as_input("base")]


def data_inputs(run: Run, base: ModelSource) -> list[Input]:
    """Return the content of the data files; a dataset of the Hub is downloaded if need be.

    If rows that are too long are dropped or cut, the rows depend on the tokenizer too, and on what
    training makes of a row.

    Raises:
        DataError: One of them does not exist.
        MissingError: A dataset of the Hub cannot be had.
    """
    from training import data_inputs

    files = data_inputs(run.config.data, run.path.parent)
    if run.config.data.checks.length.action != "fix":
        return files
    training = run.config.training
    length = canonical_digest(
        {
            "max_length": training.max_length,
            "num_sampled_tokens": training.method.num_sampled_tokens,
            "train_on": training.train_on,
            "eos_token": training.eos_token,
        }
    )
    return [*files, *base_input(run, base), Input(role="length", kind="value", digest=length)]


def training_inputs(run: Run, base: ModelSource) -> list[Input]:
    """Return the base model, and the files and models that the training method reads.

    Raises:
        DataError: A file does not exist.
        MissingError: A model cannot be had.
    """
    method = run.config.training.method
    files = [
        entry for name in method.files() for entry in _code_inputs(run, "training.method", name)
    ]
    models = [model.as_input("teacher") for model in method.models(run.path.parent)]
    return [*base_input(run, base), *files, *models]


def evaluation_inputs(run: Run, base: ModelSource) -> list[Input]:
    """Return the base model, and the files that metrics read.

    Raises:
        DataError: One of the files does not exist.
    """
    config = run.config.evaluation
    files = []
    if config.json_schema is not None:
        files.append(_file_input(run, "evaluation.json_schema", config.json_schema))
    if config.python is not None:
        files += _code_inputs(run, "evaluation.python", config.python.rpartition(":")[0])
    return [*base_input(run, base), *files]


def forgetting_inputs(run: Run, base: ModelSource) -> list[Input]:
    """Return the base model, and the items of the forgetting suite."""
    from training import suite_input

    return [*base_input(run, base), suite_input()]


def loadtest_inputs(run: Run, base: ModelSource) -> list[Input]:
    """Return the base model, the files of the server, and the workload file of the load test.

    Raises:
        DataError: The workload file does not exist.
    """
    return [*served_inputs(run, base), *workload_inputs(run)]


def served_files(run: Run) -> dict[str, Path]:
    """Return the files that flags of `serving.extra_args` name, by flag.

    A path starts from the directory of run.yaml, or else from the current one, where vLLM looks. A
    chat template may also be the text itself.
    """
    found: dict[str, Path] = {}
    for name, value in run.config.serving.extra_args.items():
        if flag_name(name) in FILE_FLAGS and isinstance(value, str):
            places = (run.resolve(value), Path(value))
            # `Path.is_file` raises for a template, which is too long for a path.
            path = next((place for place in places if os.path.isfile(place)), None)  # noqa: PTH113
            found |= {} if path is None else {name: path}
    return found


def drafter(run: Run) -> tuple[str, Path] | None:
    """Return the flag of `serving.extra_args` that names a drafter, and its folder; None without a
    folder. The path starts where the path of a file does."""
    for name, value in run.config.serving.extra_args.items():
        model = _speculation(value).get("model") if flag_name(name) == SPECULATION else None
        model = value if flag_name(name) == f"{SPECULATION}.model" else model
        if isinstance(model, str):
            places = (run.resolve(model), Path(model))
            folder = next((place for place in places if place.is_dir()), None)
            if folder is not None:
                return name, folder
    return None


def with_drafter(name: str, value: Any, folder: Path) -> Any:
    """Return the value of a flag that `drafter` found, with the folder as this process sees it."""
    path = str(folder.resolve())
    return {**_speculation(value), "model": path} if flag_name(name) == SPECULATION else path


def _speculation(value: Any) -> dict[str, Any]:
    """Return the mapping that a flag's value is, as such or as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}  # vLLM refuses the text
    return value if isinstance(value, dict) else {}


def drafter_input(role: str, folder: Path) -> Input:
    """Return the content of a drafter's folder."""
    if (folder / MANIFEST).is_file():
        return open_artifact(folder).as_input(role)
    # vLLM also reads pickled weights, which no model of Tuneline's has.
    pickles = [file_sha256(file) for file in sorted(folder.glob("*.bin"))]
    return Input(
        role=role, kind="folder", digest=canonical_digest([folder_digest(folder), *pickles])
    )


def served_inputs(run: Run, base: ModelSource) -> list[Input]:
    """Return the base model, and what the server reads besides the model: files, and a drafter."""
    files = served_files(run).items()
    found = drafter(run)
    return [
        *base_input(run, base),
        *(_file_input(run, f"serving.extra_args.{name}", path.absolute()) for name, path in files),
        *([] if found is None else [drafter_input(f"serving.extra_args.{found[0]}", found[1])]),
    ]


def evaluation_served_inputs(run: Run, base: ModelSource) -> list[Input]:
    """Return what the evaluation reads, and what the server reads."""
    return [*evaluation_inputs(run, base), *served_inputs(run, base)[1:]]


def workload_inputs(run: Run) -> list[Input]:
    path = run.config.loadtest.workload.path
    if path is not None and run.resolve(path).is_dir():
        raise DataError(
            f"{run.path}: loadtest.workload.path: {path} is a folder; a run reads one file, whose "
            "content is a part of the result's key",
            hint=f"Try: cat {shlex.quote(str(path))}/recorded-*.jsonl > recorded.jsonl",
        )
    return [] if path is None else [_file_input(run, "loadtest.workload.path", path)]


def _code_inputs(run: Run, key: str, name: str) -> list[Input]:
    """Return a Python file, and the files of its folder that it imports."""
    own = _file_input(run, key, name)
    return [
        own,
        *(_file_input(run, key, path.absolute()) for path in imported_files(run.resolve(name))),
    ]


def _file_input(run: Run, key: str, name: str | Path) -> Input:
    path = run.resolve(name)
    if not path.is_file():
        raise DataError(
            f"{run.path}: {key}: no such file: {path}",
            hint="Check the path; it starts from the directory of run.yaml.",
        )
    return file_input(key, path)
