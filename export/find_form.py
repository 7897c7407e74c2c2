"""Finding, naming and opening a form that lies on disk.

A form brings its own weights or graph, tokenizer, chat template and stop tokens. A proof takes only
the messages from the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from export.forms import FORMS, MODEL, MODEL_KINDS, OPEN_FOLDER, Form, find_function
from export.runtimes.scores import OpenedForm
from export.runtimes.transformers_folder import stored_dtype
from tuneline.core.artifact import open_artifact, verify_artifact
from tuneline.core.errors import ArtifactError, MissingError
from tuneline.core.files import MANIFEST
from tuneline.core.messages import Message
from tuneline.models.folder import CONFIG, read_json
from tuneline.models.source import ModelSource, resolve_model

PLAIN_WEIGHTS = ("float32", "float16", "bfloat16")

Answer = Callable[[Sequence[Message]], Iterator[str]]
"""Messages in, the answer's text in pieces out."""


def resolve_form(name: str) -> ModelSource:
    """Find a form on disk: an artifact that holds a model, or a plain model folder.

    Raises:
        MissingError: The folder does not exist.
        ArtifactError: The artifact is of another kind, or the folder holds no safetensors model.
    """
    path = Path(name)
    if (path / MANIFEST).is_file():
        artifact = open_artifact(path)
        if artifact.kind in MODEL_KINDS:
            return ModelSource(name, path, artifact.digest, artifact.kind)
    return resolve_model(name)


def resolve_weights(path: Path) -> ModelSource:
    """Find the model folder that a server serves, by the user's statement, and check its files.

    Raises:
        MissingError: The folder does not exist.
        ArtifactError: The folder holds no safetensors model.
        TamperedError: A file differs from the manifest.
    """
    if not path.is_dir():
        raise MissingError(f"--weights {path}: no such folder; expected the folder that is served")
    source = resolve_model(str(path))
    verify_form(source)
    return source


def form_name(source: ModelSource) -> str:
    """Return the name of a form on disk: a row of FORMS, or `candidate` for a plain model.

    The manifest's options decide. A folder that no row wrote (a merge that quantizes, or another
    tool's folder) takes the name of the first row with its kind and its weights.
    """
    if (source.path / MANIFEST).is_file():
        options = open_artifact(source.path).manifest.config
        name = _row_of(source.kind, options)
        if name is not None:
            return name
    if source.kind in MODEL_KINDS and source.kind != MODEL:
        return source.kind
    weights = weights_of_folder(source.path)
    if weights in PLAIN_WEIGHTS:
        return "candidate"
    rows = (name for name, form in FORMS.items() if (form.kind, form.weights) == (MODEL, weights))
    return next(rows, f"quantized-{weights}")


def form_weights(source: ModelSource) -> str:
    """Return the number format of a form's weights, which chooses its tolerances.

    Raises:
        ArtifactError: The form's folder does not say how its weights are quantized.
    """
    form = _form_of_kind(source.kind)
    if form is None or form.kind == MODEL:
        return weights_of_folder(source.path)
    options = open_artifact(source.path).manifest.config
    return str(options.get("weights", form.weights))


def _row_of(kind: str, options: dict[str, Any]) -> str | None:
    """Return the row that writes such an artifact with these options."""
    for name, form in FORMS.items():
        wrote = form.kind == kind and set(form.config.model_fields) == set(options)
        if wrote and form.fixed.items() <= options.items():
            return name
    return None


def open_form(source: ModelSource) -> OpenedForm:
    """Load a form to score tokens with it.

    transformers loads a model folder in float32 and dequantizes compressed-tensors; a graph is
    loaded by its own runtime.

    Raises:
        ArtifactError: The form cannot be loaded.
        TamperedError: A file differs from the manifest.
    """
    verify_form(source)
    form = _form_of_kind(source.kind)
    opened: OpenedForm = find_function(form.open if form else OPEN_FOLDER)(source.path)
    return opened


def open_chat(path: Path) -> Answer:
    """Open a form to generate answers with it.

    Raises:
        ArtifactError: The folder is not an artifact of a form that generates, or cannot be loaded.
        ConfigError: The artifact's graph has no key-value cache.
        MissingError: The form's runtime is not installed.
    """
    kinds = tuple(dict.fromkeys(form.kind for form in FORMS.values() if form.answer))
    artifact = open_artifact(path, kind=kinds)
    form = _form_of_kind(artifact.kind)
    assert form is not None and form.answer is not None  # noqa: S101 (the kind was checked)
    answer: Answer = find_function(form.answer)(path)
    return answer


def verify_form(source: ModelSource) -> None:
    """Check every byte of an artifact, because a graph is a program and a proof names a digest.

    Raises:
        TamperedError: A file differs from the manifest.
    """
    if (source.path / MANIFEST).is_file():
        verify_artifact(open_artifact(source.path, kind=source.kind))


def weights_of_folder(path: Path) -> str:
    """Return the number format of a model folder's weights, by its manifest and config.json.

    Raises:
        ArtifactError: The folder does not say how its weights are quantized.
    """
    quantization = read_json(path / CONFIG).get("quantization_config")
    if quantization:
        groups = list(quantization.get("config_groups", {}).values())
        weights = [group["weights"] for group in groups if group.get("weights")]
        if not weights:
            raise ArtifactError(
                f"{path / CONFIG}: quantization_config is of the method "
                f"{quantization.get('quant_method', 'unknown')}; expected compressed-tensors"
            )
        bits = min(int(entry["num_bits"]) for entry in weights)
        return f"{'fp' if weights[0].get('type') == 'float' else 'int'}{bits}"
    if (path / MANIFEST).is_file():
        name = _row_of(MODEL, open_artifact(path).manifest.config)
        if name is not None:
            return FORMS[name].weights
    return stored_dtype(path)


def _form_of_kind(kind: str) -> Form | None:
    return next((form for form in FORMS.values() if form.kind == kind), None)
