"""The table of forms that a model is exported to.

A new form is one module, one row here and one section of docs/export.md. Stages, commands, proofs,
model card, publishing, doctor and the generated pages read the table.

The table names functions as `module:function` and imports a module when its function is first
called, so that reading a configuration loads no machine-learning library.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.config import (
    CalibratedConfig,
    ExportConfig,
    GraphConfig,
    OnnxConfig,
    PruneConfig,
    QuantizeConfig,
)
from tuneline.core.artifact import Artifact, Input
from tuneline.core.config import StrictModel
from tuneline.core.errors import ConfigError
from tuneline.core.messages import Messages
from tuneline.models.source import ModelSource

MODEL = "model"
"""Kind of an artifact that is a transformers model folder."""
GROUPED_SCHEME = "w4a16"
"""The scheme whose values share a scale in groups."""
OPEN_FOLDER = "export.runtimes.transformers_folder:open_folder"
ONNX_MODULES = ("onnx", "onnxruntime", "onnxruntime_genai", "onnxscript")


@dataclass(frozen=True)
class CalibrationData:
    """Conversations for the forms that look at data."""

    conversations: Sequence[Messages]
    """Messages, the answer last."""
    source: Input
    """The file or dataset that they come from, for the manifest."""


def _no_options(_export: ExportConfig) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Form:
    """A form that a model is exported to, and everything that the line knows about it.

    Attributes:
        title: The form in a few words, for people.
        kind: Kind of the artifact that `make` writes.
        weights: Number format of its weights, which chooses the tolerances of its proof; `pruned`
            if weights were set to zero.
        config: The options of `make`.
        make: `make(options, model, out)` writes the artifact; with `needs_data` it takes a
            `CalibrationData` as fourth argument.
        fixed: The values of its options that make the form this form.
        run_options: The options that the `export` section of a run gives.
        open: `open(path)` returns an `OpenedForm`; the same for all rows of a kind.
        answer: `answer(path)` returns a function from messages to pieces of text, for
            `tuneline chat --artifact`; None if the form cannot generate.
        needs_data: Whether `make` looks at the training rows.
        prepare: `prepare()` raises MissingError if this machine lacks what `make` needs.
        modules: Python modules that `make` imports beyond those of the whole room.
        version: Part of the stage's key. Raise it when `make` writes another result than before
            from the same options, so that every run makes the form again.
    """

    title: str
    kind: str
    weights: str
    config: type[StrictModel]
    make: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    run_options: Callable[[ExportConfig], dict[str, Any]] = _no_options
    open: str = OPEN_FOLDER
    answer: str | None = None
    needs_data: bool = False
    prepare: str | None = None
    modules: tuple[str, ...] = ()
    version: int = 1

    @property
    def open_options(self) -> list[str]:
        """Return the names of the options that its row leaves open and that change its result."""
        scheme = self.fixed.get("scheme", GROUPED_SCHEME)
        idle = set() if scheme == GROUPED_SCHEME else {"group_size"}
        return [key for key in self.config.model_fields if key not in self.fixed.keys() | idle]

    def options(self, export: ExportConfig) -> StrictModel:
        """Return the options of `make` in a run.

        Raises:
            ValueError: The run's `export` section lacks an option.
        """
        return self.config.model_validate({**self.run_options(export), **self.fixed})


def _group_size(scheme: str, export: ExportConfig) -> dict[str, Any]:
    # The other schemes have no groups, so a change of the group size must not make them again.
    return {"group_size": export.merge.group_size} if scheme == GROUPED_SCHEME else {}


def _quantized(title: str, scheme: str, weights: str) -> Form:
    return Form(
        title=title,
        kind=MODEL,
        weights=weights,
        config=QuantizeConfig,
        make="export.quantize.quantize:quantize_model",
        fixed={"scheme": scheme},
        run_options=functools.partial(_group_size, scheme),
        version=4,
    )


def _calibrated(title: str, method: str, scheme: str, weights: str) -> Form:
    return Form(
        title=title,
        kind=MODEL,
        weights=weights,
        config=CalibratedConfig,
        make="export.quantize.llm_compressor:quantize_calibrated",
        fixed={"method": method, "scheme": scheme},
        run_options=lambda export: {
            **export.calibration.model_dump(),
            **_group_size(scheme, export),
        },
        needs_data=True,
        prepare="export.quantize.llm_compressor_environment:calibration_python",
        version=3,
    )


def _onnx(title: str, weights: str, fixed: Mapping[str, Any], version: int = 1) -> Form:
    return Form(
        title=title,
        kind="onnx",
        weights=weights,
        config=OnnxConfig,
        make="export.graphs.to_onnx:export_onnx",
        fixed=fixed,
        open="export.runtimes.onnx_folder:open_onnx",
        answer="export.runtimes.onnx_folder:answers",
        modules=ONNX_MODULES,
        version=version,
    )


def _prune_options(export: ExportConfig) -> dict[str, Any]:
    if export.prune is None:
        raise ValueError("the form pruned needs the section export.prune")
    return export.prune.model_dump()


FORMS: dict[str, Form] = {
    "quantized-fp8": _quantized("FP8 weights and activations, to nearest", "fp8", "fp8"),
    "quantized-int8": _quantized(
        "INT8 weights and activations, rounded to nearest", "int8", "int8"
    ),
    "quantized-w4a16": _quantized("4-bit weights, to nearest", "w4a16", "int4"),
    "gptq-int8": _calibrated("INT8 weights and activations by GPTQ", "gptq", "int8", "int8"),
    "gptq-w4a16": _calibrated("4-bit weights by GPTQ", "gptq", "w4a16", "int4"),
    "awq-w4a16": _calibrated("4-bit weights by AWQ", "awq", "w4a16", "int4"),
    "onnx-float32": _onnx(
        "ONNX decoder, float32 weights",
        "float32",
        {"weights": "float32", "graph": "decoder"},
        version=2,
    ),
    "onnx-int8": _onnx(
        "ONNX decoder, INT8 weights", "int8", {"weights": "int8", "graph": "decoder"}, version=3
    ),
    "onnx-int4": _onnx(
        "ONNX decoder, 4-bit weights", "int4", {"weights": "int4", "graph": "decoder"}, version=3
    ),
    "onnx-logits": _onnx("ONNX graph of the logits", "float32", {"graph": "logits"}),
    "torchscript": Form(
        title="TorchScript graph of the logits",
        kind="torchscript",
        weights="float32",
        config=GraphConfig,
        make="export.graphs.to_torchscript:export_torchscript",
        open="export.graphs.to_torchscript:open_torchscript",
    ),
    "torch-export": Form(
        title="torch.export program of the logits",
        kind="torch-export",
        weights="float32",
        config=GraphConfig,
        make="export.graphs.to_torch_export:export_torch_export",
        open="export.graphs.to_torch_export:open_torch_export",
    ),
    "pruned": Form(
        title="Smallest weights set to zero",
        kind=MODEL,
        weights="pruned",
        config=PruneConfig,
        make="export.prune:prune_model",
        run_options=_prune_options,
    ),
}
"""Every form by its name, in the order of the pages and of the help."""

MODEL_KINDS = (MODEL, *dict.fromkeys(form.kind for form in FORMS.values() if form.kind != MODEL))
"""Kinds of the artifacts that hold a model."""


def make_form(
    name: str,
    model: ModelSource,
    out: Path,
    options: StrictModel | None = None,
    data: CalibrationData | None = None,
) -> Artifact:
    """Write a model as the form `name` of FORMS.

    Args:
        model: A model folder, not quantized.
        out: The artifact's directory.
        options: An instance of the form's `config`; by default its fixed values and the defaults.
        data: Conversations, for a form that needs data.

    Raises:
        ConfigError: The form needs data and none is given.
        TunelineError: The function of the form fails; see its module.
    """
    form = FORMS[name]
    chosen = options or form.config.model_validate(dict(form.fixed))
    make = find_function(form.make)
    if not form.needs_data:
        made: Artifact = make(chosen, model, out)
    elif data is None:
        raise ConfigError(f"{name}: the form calibrates on conversations and none are given")
    else:
        made = make(chosen, model, out, data)
    return made


def prepare_form(name: str) -> None:
    """Check that this machine has what a form needs beyond its Python modules.

    Raises:
        MissingError: The machine lacks it; the message names the command that installs it.
    """
    prepare = FORMS[name].prepare
    if prepare is not None:
        find_function(prepare)()


def missing_modules(name: str) -> list[str]:
    """Return the modules that a form needs and that are not installed."""
    return [m for m in FORMS[name].modules if importlib.util.find_spec(m) is None]


def find_function(where: str) -> Callable[..., Any]:
    """Import the function that the table calls `module:function`."""
    module, _, name = where.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
