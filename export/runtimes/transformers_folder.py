"""A transformers model folder, loaded as a user loads it, to score tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from export.runtimes.quantized_folder import load_quantized, scheme_here
from export.runtimes.scores import OpenedForm
from export.weights.families import is_left_out
from export.weights.tensor_file import read_tensor_file
from tuneline.core.errors import ArtifactError
from tuneline.models.folder import (
    CONFIG,
    GENERATION_CONFIG,
    read_json,
    served_weight_files,
    weight_files,
)
from tuneline.models.greedy import Score, cached_scores
from tuneline.models.load import load_network, served_class
from tuneline.models.schemas import GenerationConfig
from tuneline.models.stop_tokens import as_stop_ids, folder_stop_ids
from tuneline.models.tokenizer import load_tokenizer

SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "max_new_tokens": None,
}  # fmt: skip
"""The fields that vLLM 0.32 takes from generation_config.json
(`ModelConfig.get_diff_sampling_param`), with the values of a request that does not set them."""


def open_folder(path: Path) -> OpenedForm:
    """Load a model folder in float32 to score tokens with it.

    Raises:
        ArtifactError: The folder cannot be loaded, or vLLM would load other files of it.
    """
    network, tokenizer = load_model(path)
    _check_served_files(path)
    return OpenedForm(
        score=cached_scores(network),
        tokenizer=tokenizer,
        stop_ids=as_stop_ids(network.generation_config.eos_token_id),
        num_rows=int(network.get_input_embeddings().weight.shape[0]),
    )


def _check_served_files(path: Path) -> None:
    """Refuse a folder of which transformers and vLLM read different files, such as the base's
    files that were copied with the others: the proof would not be about the served model."""
    here, served = weight_files(path), served_weight_files(path)
    if set(here) == set(served):
        return
    mine, its = (", ".join(file.name for file in files) or "none" for files in (here, served))
    more = sorted({*here} ^ {*served})
    raise ArtifactError(
        f"{path}: transformers reads {mine} and vLLM reads {its}; expected one set of weights",
        hint="Try: remove the files that are not the model's, out of "
        f"{', '.join(file.name for file in more)}, and an index that names them.",
    )


def open_graph(path: Path, score: Score) -> OpenedForm:
    """Return a graph's scores with the tokenizer and stop tokens of its folder.

    Raises:
        ArtifactError: A file of the folder cannot be read.
    """
    return OpenedForm(
        score=score,
        tokenizer=load_tokenizer(path),
        stop_ids=folder_stop_ids(path),
        num_rows=int(read_json(path / CONFIG)["vocab_size"]),
    )


def load_model(path: Path, **options: Any) -> tuple[Any, Any]:
    """Load the causal LM of a folder in float32, and its tokenizer.

    Args:
        options: Arguments of `from_pretrained`.

    Raises:
        ArtifactError: transformers cannot load it, or its weights lack a tensor or have an extra
            one.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # ours is shown

    def load(folder: Path, **given: Any) -> tuple[Any, Any]:
        scheme = scheme_here(folder)
        if scheme is not None:
            attention = {name: given[name] for name in ("attn_implementation",) if name in given}
            return load_quantized(folder, scheme, **{**options, **attention})
        found: tuple[Any, Any] = served_class(folder).from_pretrained(folder, **given)
        return found

    network = load_network(
        path,
        torch.float32,
        what=str(path),
        load=load,
        ignores=lambda network, name: is_left_out(network.config.to_dict(), name),
        **options,
    )
    return network, load_tokenizer(path)


def sampling_defaults(path: Path) -> dict[str, float]:
    """Return the sampling that generation_config.json sets for a vLLM request without its own.

    Raises:
        ArtifactError: The file cannot be read.
    """
    if not (path / GENERATION_CONFIG).is_file():
        return {}
    said = read_json(path / GENERATION_CONFIG, GenerationConfig)
    return {name: said[name] for name in SAMPLING if said.get(name) not in (None, SAMPLING[name])}


def stored_dtype(path: Path) -> str:
    """Return the format of most of a model's weights: float32, bfloat16 or float16.

    A few tensors in a coarser format do not widen the tolerances of the whole model.
    """
    stored: Counter[str] = Counter()
    for file in weight_files(path):
        for entry in read_tensor_file(file).entries:
            stored[entry.dtype] += entry.num_elements
    found = max(("F32", "BF16", "F16"), key=lambda name: stored[name])
    return {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[found]
