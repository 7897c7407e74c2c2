"""The stages of a line, in order: one plain step each, which calls one function of its room."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export import FORMS, CalibrationData, make_form
from loadtest.config import LoadTestConfig
from tuneline.core.artifact import Artifact, Input
from tuneline.core.config import StrictModel
from tuneline.core.endpoint import Endpoint
from tuneline.models.source import ModelSource, computed_dtype
from tuneline.pipeline.run_config import Run

Made = dict[str, Artifact]


@dataclass(frozen=True)
class Line:
    """What every stage may use: the run, its base model, and the running server."""

    run: Run
    base: ModelSource
    endpoint: Callable[[Made], Endpoint]
    """Starts the server on first use; later stages of the same `up` share it."""


@dataclass(frozen=True)
class Stage:
    """One step of the line.

    Attributes:
        name: Also the first part of its artifact's directory name.
        title: What it does, for people.
        config: The sections that decide its result.
        needs: Names of the stages whose artifacts it reads.
        step: Writes the artifact.
    """

    name: str
    title: str
    config: StrictModel | tuple[StrictModel, ...]
    needs: tuple[str, ...]
    step: Callable[[Line, Made, Path], Artifact]


def _dataset(line: Line, _made: Made, out: Path) -> Artifact:
    from training.data.prepare import prepare

    data = line.run.config.data
    heldout = data.heldout_path
    return prepare(
        data,
        path=line.run.resolve(data.path),
        heldout_path=None if heldout is None else line.run.resolve(heldout),
        out=out,
    )


def _adapter(line: Line, made: Made, out: Path) -> Artifact:
    from training.train import train

    return train(line.run.config.training, made["dataset"], line.base, out)


def _reference(line: Line, made: Made, out: Path) -> Artifact:
    from training.reference import build_reference

    config = line.run.config.reference
    return build_reference(config, made["dataset"], line.base, made["adapter"], out)


def _evaluation_base(line: Line, made: Made, out: Path) -> Artifact:
    from training.evaluation.evaluate import evaluate_model

    return evaluate_model(line.run.config.evaluation, made["dataset"], line.base, None, out)


def _evaluation_tuned(line: Line, made: Made, out: Path) -> Artifact:
    from training.evaluation.evaluate import evaluate_model

    config = line.run.config.evaluation
    return evaluate_model(config, made["dataset"], line.base, made["adapter"], out)


def _model(line: Line, made: Made, out: Path) -> Artifact:
    from export import merge_adapter

    return merge_adapter(line.run.config.export.merge, line.base, made["adapter"], out)


def _parity_merged(line: Line, made: Made, out: Path) -> Artifact:
    from export import prove_model

    model = model_source(made["model"])
    return prove_model(line.run.config.export.parity, made["reference"], model, out, form="merged")


def _form_stages(run: Run) -> list[Stage]:
    """Return two stages for each form that the run asks for: make it, and prove it."""
    export = run.config.export
    found = []
    for name in export.forms:
        form = FORMS[name]
        needs = ("dataset", "model") if form.needs_data else ("model",)
        found += [
            Stage(
                name, f"Export {name}", form.options(export), needs,
                functools.partial(_form, name),
            ),
            Stage(
                f"parity-{name}", f"Prove {name}", export.parity, ("reference", name),
                functools.partial(_parity_form, name),
            ),
        ]  # fmt: skip
    return found


def _form(name: str, line: Line, made: Made, out: Path) -> Artifact:
    form, data = FORMS[name], None
    if form.needs_data:
        from training.data.prepare import TRAIN_FILE, dataset_rows

        dataset = made["dataset"]
        rows = dataset_rows(dataset, TRAIN_FILE)
        data = CalibrationData([row.messages for row in rows], dataset.as_input("data"))
    options = form.options(line.run.config.export)
    return make_form(name, model_source(made["model"]), out, options, data)


def _parity_form(form: str, line: Line, made: Made, out: Path) -> Artifact:
    from export import prove_model

    config = line.run.config.export.parity
    return prove_model(config, made["reference"], model_source(made[form]), out, form=form)


def _parity_served(line: Line, made: Made, out: Path) -> Artifact:
    from export import weight_tolerances
    from serving.parity import prove_served

    serving = line.run.config.serving
    merged = serving.mode == "merged"  # else the base is served, as the trained model has it
    weights = model_source(made["model"]) if merged else line.base
    dtype = computed_dtype(serving.dtype, weights)
    return prove_served(
        serving.parity,
        made["reference"],
        line.endpoint(made),
        out,
        inputs=served_inputs(line, made),
        dtype=dtype,
        weights=weight_tolerances(weights, dtype) if merged else None,
    )


def _evaluation_served(line: Line, made: Made, out: Path) -> Artifact:
    from training.evaluation.evaluate import evaluate_endpoint

    config = line.run.config.evaluation
    endpoint = line.endpoint(made)
    return evaluate_endpoint(
        config, made["dataset"], endpoint, out, inputs=served_inputs(line, made)
    )


def _load(line: Line, made: Made, out: Path) -> Artifact:
    from loadtest.run import run_loadtest

    return run_loadtest(
        loadtest_config(line.run),
        line.endpoint(made),
        out,
        prompts=heldout_prompts(made["dataset"]),
        inputs=served_inputs(line, made),
    )


def loadtest_config(run: Run) -> LoadTestConfig:
    """The section `loadtest`, with its workload file as this process sees it."""
    config = run.config.loadtest
    if config.workload.path is None:
        return config
    path = str(run.resolve(config.workload.path))
    workload = config.workload.model_copy(update={"path": path})
    return config.model_copy(update={"workload": workload})


def stages(run: Run) -> list[Stage]:
    """The line, in order."""
    config = run.config
    served = "adapter" if config.serving.mode == "adapter" else "model"
    return [
        Stage("dataset", "Check, clean and split the data", config.data, (), _dataset),
        Stage(
            "evaluation-base", "Evaluate the base model", config.evaluation, ("dataset",),
            _evaluation_base,
        ),
        Stage("adapter", "Fine-tune a LoRA adapter", config.training, ("dataset",), _adapter),
        Stage(
            "evaluation-tuned", "Evaluate base + adapter", config.evaluation,
            ("dataset", "adapter"), _evaluation_tuned,
        ),
        Stage(
            "reference", "Record the trained model's answers", config.reference,
            ("dataset", "adapter"), _reference,
        ),
        Stage("model", "Merge adapter and base", config.export.merge, ("adapter",), _model),
        Stage(
            "parity-merged", "Prove the merged model", config.export.parity,
            ("reference", "model"), _parity_merged,
        ),
        *_form_stages(run),
        Stage(
            "parity-served", "Prove the served model", config.serving, ("reference", served),
            _parity_served,
        ),
        Stage(
            "evaluation-served", "Evaluate through the API", (config.serving, config.evaluation),
            ("dataset", served), _evaluation_served,
        ),
        Stage(
            "load", "Load-test the endpoint", (config.serving, config.loadtest),
            ("dataset", served), _load,
        ),
    ]  # fmt: skip


def heldout_prompts(dataset: Artifact) -> list[list[dict[str, str]]]:
    """The chat messages of a dataset's held-out rows, without their answers."""
    text = (dataset.path / "heldout.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["prompt"] for line in text.split("\n") if line]


def model_source(model: Artifact) -> ModelSource:
    return ModelSource(model.path.name, model.path, model.digest, model.kind)


def served_inputs(line: Line, made: Made) -> list[Input]:
    """What the endpoint under test serves, for the report's manifest."""
    if line.run.config.serving.mode == "adapter":
        return [line.base.as_input("base"), made["adapter"].as_input("adapter")]
    return [made["model"].as_input("model")]
