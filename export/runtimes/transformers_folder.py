"""A transformers model folder, loaded as a user loads it, to score tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from export.quantize.experts import has_quantized_experts, load_quantized_experts
from export.runtimes.scores import OpenedForm, Score, cached_scores
from export.weights.families import is_left_out
from export.weights.tensor_file import read_tensor_file
from tuneline.core.errors import ArtifactError
from tuneline.models.folder import CONFIG, GENERATION_CONFIG, read_json
from tuneline.models.schemas import GenerationConfig

SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "max_new_tokens": None,
}  # fmt: skip
"""The fields that vLLM 0.32 takes from generation_config.json
(`ModelConfig.get_diff_sampling_param`), with the values of a request that does not set them."""


def open_folder(path: Path) -> OpenedForm:
    """Load a model folder in float32 to score tokens with it.

    Raises:
        ArtifactError: The folder cannot be loaded.
    """
    network, tokenizer = load_model(path)
    return OpenedForm(
        score=cached_scores(network),
        tokenizer=tokenizer,
        stop_ids=stop_token_ids(network),
        num_rows=int(network.get_input_embeddings().weight.shape[0]),
    )


def open_graph(path: Path, score: Score) -> OpenedForm:
    """Return a graph's scores with the tokenizer and stop tokens of its folder.

    Raises:
        ArtifactError: A file of the folder cannot be read.
    """
    return OpenedForm(
        score=score,
        tokenizer=load_tokenizer(path),
        stop_ids=stop_ids_of_folder(path),
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
    import safetensors
    import transformers

    transformers.utils.logging.disable_progress_bar()  # Tuneline shows its own
    # A model of text and pictures is loaded whole, as a server loads it.
    whole = "text_config" in read_json(path / CONFIG)
    loader = (
        transformers.AutoModelForImageTextToText if whole else transformers.AutoModelForCausalLM
    )
    try:
        if has_quantized_experts(path):
            network, info = load_quantized_experts(path, **options)
        else:
            network, info = loader.from_pretrained(
                path,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{path}: transformers cannot load it: {reason}") from error
    config = network.config.to_dict()
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = [str(name) for name in info.get(what) or ()]
        if what == "unexpected_keys":
            names = [name for name in names if not is_left_out(config, name)]
        if names:
            found = ", ".join(sorted(names)[:5])
            raise ArtifactError(f"{path}: the weights have {what.replace('_', ' ')}: {found}")
    return network.eval(), tokenizer


def render_prompt(tokenizer: Any, messages: list[dict[str, str]], path: Path) -> list[int]:
    """Return the token ids of a conversation, rendered by the model's own chat template.

    Raises:
        ArtifactError: The tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ArtifactError(f"{path}: the tokenizer has no chat template")
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [int(token) for token in ids]


def stop_token_ids(network: Any) -> frozenset[int]:
    """Return the tokens that end an answer, by the model's generation_config.json."""
    stop = network.generation_config.eos_token_id
    if stop is None:
        return frozenset()
    return frozenset([stop] if isinstance(stop, int) else stop)


def stop_ids_of_folder(path: Path) -> frozenset[int]:
    """Return the tokens that end an answer from only the folder's files.

    generation_config.json comes first, then config.json, as transformers reads them.

    Raises:
        ArtifactError: A file cannot be read.
    """
    generation = path / GENERATION_CONFIG
    stop = read_json(generation if generation.is_file() else path / CONFIG).get("eos_token_id")
    if stop is None:
        return frozenset()
    return frozenset([stop] if isinstance(stop, int) else stop)


def sampling_defaults(path: Path) -> dict[str, float]:
    """Return the sampling that generation_config.json sets for a vLLM request without its own.

    Raises:
        ArtifactError: The file cannot be read.
    """
    if not (path / GENERATION_CONFIG).is_file():
        return {}
    said = read_json(path / GENERATION_CONFIG, GenerationConfig)
    return {name: said[name] for name in SAMPLING if said.get(name) not in (None, SAMPLING[name])}


def load_tokenizer(path: Path) -> Any:
    """Load the tokenizer of a folder.

    Raises:
        ArtifactError: It cannot be loaded.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ArtifactError(f"{path}: transformers cannot load its tokenizer: {error}") from error


def stored_dtype(path: Path) -> str:
    """Return the format of most of a model's weights: float32, bfloat16 or float16.

    A few tensors in a coarser format do not widen the tolerances of the whole model.
    """
    stored: Counter[str] = Counter()
    for file in sorted(path.glob("*.safetensors")):
        for entry in read_tensor_file(file).entries:
            stored[entry.dtype] += entry.num_elements
    found = max(("F32", "BF16", "F16"), key=lambda name: stored[name])
    return {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[found]
