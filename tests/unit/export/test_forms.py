"""The table of forms: what each row says, and what a run's configuration makes of it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from export import FORMS
from export.config import (
    CalibratedConfig,
    ExportConfig,
    GraphConfig,
    OnnxConfig,
    PruneConfig,
    QuantizeConfig,
)
from export.find_form import form_name, form_weights, resolve_form
from export.forms import MODEL_KINDS, find_function, missing_modules
from tuneline.core.artifact import new_artifact
from tuneline.core.config import StrictModel, validate_config
from tuneline.core.errors import ConfigError
from tuneline.core.tolerances import WEIGHT_TOLERANCES

RUN = {
    "merge": {"group_size": 64},
    "calibration": {"num_calibration_samples": 8},
    "prune": {"sparsity": 0.5},
}
OPTIONS: dict[str, StrictModel] = {
    "quantized-fp8": QuantizeConfig(scheme="fp8"),
    "quantized-int8": QuantizeConfig(scheme="int8"),
    "quantized-w4a16": QuantizeConfig(scheme="w4a16", group_size=64),
    "gptq-int8": CalibratedConfig(method="gptq", scheme="int8", num_calibration_samples=8),
    "gptq-w4a16": CalibratedConfig(
        method="gptq", scheme="w4a16", group_size=64, num_calibration_samples=8
    ),
    "awq-w4a16": CalibratedConfig(
        method="awq", scheme="w4a16", group_size=64, num_calibration_samples=8
    ),
    "onnx-float32": OnnxConfig(weights="float32"),
    "onnx-int8": OnnxConfig(weights="int8"),
    "onnx-int4": OnnxConfig(weights="int4"),
    "onnx-logits": OnnxConfig(graph="logits"),
    "torchscript": GraphConfig(),
    "torch-export": GraphConfig(),
    "pruned": PruneConfig(sparsity=0.5),
}


def test_the_table_holds_these_forms() -> None:
    assert FORMS.keys() == OPTIONS.keys()
    assert MODEL_KINDS == ("model", "onnx", "torchscript", "torch-export")


@pytest.mark.parametrize("name", FORMS)
def test_a_run_gives_a_form_its_options(name: str) -> None:
    values = {**RUN, "forms": [name, "pruned"] if name != "pruned" else [name]}
    export = validate_config(ExportConfig, values, "run.yaml")
    assert FORMS[name].options(export) == OPTIONS[name]


@pytest.mark.parametrize("name", FORMS)
def test_the_functions_of_a_form_exist(name: str) -> None:
    form = FORMS[name]
    made = list(inspect.signature(find_function(form.make)).parameters)
    assert len(made) == (4 if form.needs_data else 3), made
    assert list(inspect.signature(find_function(form.open)).parameters) == ["path"]
    for where in filter(None, (form.answer, form.prepare)):
        assert callable(find_function(where))
    assert missing_modules(name) == []
    assert form.weights in WEIGHT_TOLERANCES


def test_forms_of_one_kind_are_opened_alike() -> None:
    opened = {(form.kind, form.open, form.answer) for form in FORMS.values()}
    assert len(opened) == len(MODEL_KINDS)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"forms": ["onnx-int3"]}, "forms.0: 'onnx-int3' is not a form; expected "),
        ({"parity": {"forms": {"onnx-int3": {}}}}, "'onnx-int3' is not a form; expected "),
        (
            {"calibration": {"num_samples": 8}},
            "calibration.num_samples: is called num_calibration_samples here",
        ),
        (
            {"calibration": {"max_length": 8}},
            "calibration.max_length: is called max_seq_length here",
        ),
        ({"forms": ["torchscript", "torchscript"]}, "forms lists a form twice"),
        ({"forms": ["pruned"]}, "the form pruned needs the section export.prune"),
        ({"prune": {"sparsity": 0.5}}, "forms lists no form that it configures"),
        (
            {"forms": ["torchscript"], "merge": {"quantize": "int8"}},
            "leave out merge.quantize, and list quantized-int8 in forms",
        ),
    ],
)
def test_forms_that_cannot_be_made_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config(ExportConfig, values, "run.yaml")
    assert problem in str(caught.value)


def artifact(folder: Path, kind: str, config: dict[str, Any]) -> Path:
    """An artifact of a form as its manifest describes it, without weights."""
    with new_artifact(folder, kind, config=config) as draft:
        (draft.dir / "config.json").write_text("{}")
        (draft.dir / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    return folder


@pytest.mark.parametrize("name", FORMS)
def test_a_form_on_disk_is_known_by_its_manifest(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    source = resolve_form(str(artifact(tmp_path / "a", form.kind, OPTIONS[name].model_dump())))
    assert form_name(source) == name
    if not name.startswith(("quantized", "gptq", "awq")):  # their config.json says it
        assert form_weights(source) == form.weights


@pytest.mark.parametrize(
    ("config", "name", "weights"),
    [
        ({"weights": "float32", "graph": "decoder"}, "onnx-float32", "float32"),
        ({"weights": "int4", "graph": "decoder"}, "onnx-int4", "int4"),
        ({"weights": "float16", "graph": "logits"}, "onnx-logits", "float16"),
        ({"weights": "int8", "graph": "logits"}, "onnx-logits", "int8"),
    ],
)
def test_a_graph_is_known_by_its_interface_and_weights(
    config: dict[str, Any], name: str, weights: str, tmp_path: Path
) -> None:
    source = resolve_form(str(artifact(tmp_path / "a", "onnx", config)))
    assert (form_name(source), form_weights(source)) == (name, weights)
