"""Opening any form that a model was exported to, so that it can answer the reference's prompts.

A form brings its own graph, tokenizer, chat template and stop tokens: nothing of the reference
enters but the messages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.graphs.to_torch_export import PT2_FILE, load_torch_export
from export.graphs.to_torchscript import TORCHSCRIPT_FILE, load_torchscript
from export.runtimes.onnx_folder import (
    GENAI_CONFIG,
    ONNX_FILE,
    decoder_scores,
    decoder_stop_ids,
    logits_runner,
)
from export.runtimes.transformers_folder import (
    Score,
    cached_scores,
    load_model,
    load_tokenizer,
    stop_ids_of_folder,
    stop_token_ids,
    stored_dtype,
    whole_scores,
)
from export.weights.model_folder import CONFIG, read_json
from tuneline.core.artifact import MANIFEST, open_artifact, verify_artifact
from tuneline.core.errors import ArtifactError, MissingError
from tuneline.models.source import ModelSource, resolve_model

GRAPH_KINDS = ("onnx", "torchscript", "torch-export")


@dataclass(frozen=True)
class Form:
    """A form of a model that can be asked for logits."""

    score: Score
    tokenizer: Any
    stop_ids: frozenset[int]
    num_rows: int
    """Token ids below this are known to it."""
    numbers: str
    """What its weights were reduced to: the key of its default tolerances."""


def resolve_form(name: str) -> ModelSource:
    """Find a form on disk: an artifact of any kind that holds a model, or a plain model folder.

    Raises:
        MissingError: There is no such folder.
        ArtifactError: It is an artifact of another kind, or holds no safetensors model.
    """
    path = Path(name)
    if (path / MANIFEST).is_file():
        artifact = open_artifact(path)
        if artifact.kind in GRAPH_KINDS:
            return ModelSource(name, path, artifact.digest, artifact.kind)
    return resolve_model(name)


def resolve_folder(name: str) -> ModelSource:
    """Find a model folder on disk; nothing is fetched, and a path is all that it can be.

    Raises:
        MissingError: There is no such folder.
        ArtifactError: It holds no safetensors model.
    """
    if not Path(name).is_dir():
        raise MissingError(f"--model {name}: no such folder; expected a model folder")
    return resolve_model(name)


def resolve_weights(path: Path) -> ModelSource:
    """Find the model folder that a server is said to serve.

    Raises:
        MissingError: There is no such folder.
        ArtifactError: It holds no safetensors model.
        TamperedError: Its files are not those that its manifest lists.
    """
    if not path.is_dir():
        raise MissingError(f"--weights {path}: no such folder; expected the folder that is served")
    source = resolve_model(str(path))
    verify_form(source)
    return source


def form_name(model: ModelSource) -> str:
    """What a form is called in a proof: `onnx-int4`, `torchscript`, `pruned`, `gptq-int8`, ..."""
    if model.kind == "onnx":
        config = open_artifact(model.path).manifest.config
        return "onnx-logits" if config["graph"] == "logits" else f"onnx-{config['precision']}"
    if model.kind in GRAPH_KINDS:
        return model.kind
    numbers = numbers_of_folder(model.path)
    if numbers in ("float32", "float16", "bfloat16"):
        return "candidate"
    if numbers == "pruned":
        return numbers
    scheme = {"int4": "w4a16", "float8": "fp8"}.get(numbers, numbers)
    if (model.path / MANIFEST).is_file():
        method = open_artifact(model.path).manifest.config.get("method")
        return f"{method or 'quantized'}-{scheme}"
    return f"quantized-{scheme}"


def open_form(model: ModelSource) -> Form:
    """Load a form: with transformers in float32 where it is a model folder (compressed-tensors is
    dequantized by transformers), else with the runtime that its graph is for.

    Raises:
        ArtifactError: It cannot be loaded.
        TamperedError: Its files are not those that its manifest lists.
    """
    verify_form(model)
    if model.kind in GRAPH_KINDS:
        return _open_graph(model)
    network, tokenizer = load_model(model.path)
    return Form(
        score=cached_scores(network),
        tokenizer=tokenizer,
        stop_ids=stop_token_ids(network),
        num_rows=int(network.get_input_embeddings().weight.shape[0]),
        numbers=numbers_of_folder(model.path),
    )


def verify_form(model: ModelSource) -> None:
    """Read every byte of an artifact: a proof names the manifest's digest, and a graph is a
    program, so only the very bytes that were exported are proven and run.

    Raises:
        TamperedError: Its files are not those that its manifest lists.
    """
    if (model.path / MANIFEST).is_file():
        verify_artifact(open_artifact(model.path, kind=model.kind))


def _open_graph(model: ModelSource) -> Form:
    path = model.path
    numbers = "float32"
    stop_ids = stop_ids_of_folder(path)
    if model.kind == "onnx":
        precision = open_artifact(path).manifest.config["precision"]
        numbers = {"fp32": "float32", "fp16": "float16"}.get(precision, precision)
        if (path / GENAI_CONFIG).is_file():
            score, stop_ids = decoder_scores(path), decoder_stop_ids(path)
        else:
            score = whole_scores(logits_runner(path / ONNX_FILE))
    elif model.kind == "torchscript":
        score = whole_scores(load_torchscript(path / TORCHSCRIPT_FILE))
    else:
        score = whole_scores(load_torch_export(path / PT2_FILE))
    return Form(
        score=score,
        tokenizer=load_tokenizer(path),
        stop_ids=stop_ids,
        num_rows=int(read_json(path / CONFIG)["vocab_size"]),
        numbers=numbers,
    )


def numbers_of_folder(path: Path) -> str:
    """What a model folder's weights were reduced to, by its manifest and its config.json."""
    quantization = read_json(path / CONFIG).get("quantization_config")
    if quantization:
        groups = list(quantization.get("config_groups", {}).values())
        weights = [group["weights"] for group in groups if group.get("weights")]
        if not weights:
            raise ArtifactError(
                f"{path / CONFIG}: cannot tell how the weights are quantized "
                f"({quantization.get('quant_method', 'unknown')}); expected compressed-tensors"
            )
        bits = min(int(entry["num_bits"]) for entry in weights)
        return f"{'float' if weights[0].get('type') == 'float' else 'int'}{bits}"
    if (path / MANIFEST).is_file():
        config = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["config"]
        if "sparsity" in config:
            return "pruned"
    return stored_dtype(path)
