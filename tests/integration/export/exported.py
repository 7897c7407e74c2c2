"""Tiny models for the exports: the families of the merge, mixtures of experts, and an odd size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.integration.export import families

CONFIGS: dict[str, Callable[[], Any]] = {
    **families.FAMILIES,
    "mixtral": lambda: transformers.MixtralConfig(
        **families.SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    ),
    # Rotated by half of 32: ONNX Runtime's attention takes multiples of 16.
    "phi": lambda: transformers.PhiConfig(**{**families.SMALL, "hidden_size": 128}),
    "llama-odd": lambda: transformers.LlamaConfig(**{**families.SMALL, "intermediate_size": 98}),
}


def make_model(
    folder: Path,
    family: str,
    *,
    num_layers: int = 2,
    dtype: torch.dtype = torch.float32,
    **save: Any,
) -> Path:
    """A random-weight model with a tokenizer and a chat template, saved by transformers."""
    config = CONFIGS[family]()
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    return families.save_random(folder, config, dtype, **save)
