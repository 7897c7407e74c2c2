"""The names that families of models give to their tensors."""

from __future__ import annotations

import re
from typing import Any

EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "embeddings")
"""Names of the input embedding."""
HEAD = "lm_head"
"""Name of the output layer."""
NEOX_HEAD = "embed_out"
"""Name of the output layer in the files of GPT-NeoX; transformers 5 says `lm_head` in memory."""
OTHER_HEADS = {
    "biogpt": "output_projection", "gpt_neox_japanese": "embed_out",
    "modernbert-decoder": "decoder",
}  # fmt: skip
"""Name of the output layer in memory, by `model_type`, of families that tie and do not store it."""
TIED_IN_VLLM = frozenset({
    "cohere", "cohere2", "cohere2_moe", "gemma2", "gemma3n_text", "lfm2", "lfm2_moe", "zamba2",
})  # fmt: skip
"""Families whose output layer vLLM 0.32 ties to the embedding, whatever config.json says. An output
layer of its own is lost (Cohere, LFM2, Zamba2), or the model does not load (Gemma)."""

# GPT-2 stores these weights as (in, out). A square shape does not tell.
CONV1D_MODULES = {
    model_type: frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
    for model_type in ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
}

ROUTERS = frozenset({"gate", "router", "shared_expert_gate", "altup"})
"""Names in the path of a weight that chooses experts, or mixes Gemma 3n's few streams (`altup`).
Routers keep their number format and their values: a token that goes to another expert is not a
rounding error, and servers expect them so."""

IN_DECODER_LAYER = re.compile(r".+\.layers\.\d+\..+\.weight")
FURTHER_LAYERS = re.compile(r"(^|\.)mtp\w*\.")
LAYER = re.compile(r"(?:(?:model|language_model|text_model)\.)*layers\.(\d+)\..+")


def is_router(name: str) -> bool:
    """Return whether a tensor belongs to a layer that chooses experts or mixes streams."""
    return not ROUTERS.isdisjoint(name.split("."))


def is_conv1d(config: dict[str, Any], module: str) -> bool:
    """Return whether a module stores its weight as (in, out)."""
    return module.rpartition(".")[2] in CONV1D_MODULES.get(str(config.get("model_type")), ())


def is_left_out(config: dict[str, Any], name: str) -> bool:
    """Return whether a tensor belongs to the layers that predict further tokens.

    transformers does not load these layers, so an adapter cannot be trained on them. Their names
    say `mtp`, or their numbers follow those of the model's own layers.
    """
    num_layers: int | None = (config.get("text_config") or config).get("num_hidden_layers")
    layer = LAYER.fullmatch(name)
    if layer and num_layers is not None:
        return int(layer[1]) >= num_layers
    return FURTHER_LAYERS.search(name) is not None


def is_in_text_half(config: dict[str, Any], name: str) -> bool:
    """Return whether a tensor belongs to the layers that read text.

    In a model of text only, every tensor does.
    """
    return "text_config" not in config or LAYER.fullmatch(name) is not None
