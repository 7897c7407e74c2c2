"""Tiny models for the exports: the families of the merge, mixtures of experts, and an odd size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from export.graphs import to_onnx
from tests.integration.export import families
from tuneline.models.source import ModelSource

SMALL_FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "manifest.json",
}  # fmt: skip
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "dynamic": {"factor": 4.0},
    "longrope": {
        "factor": 4.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    },
}  # fmt: skip
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


def with_rope(folder: Path, rope_type: str) -> Path:
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, **ROPES[rope_type]}
    config = transformers.LlamaConfig(**families.SMALL, rope_parameters=rope)
    return families.save_random(folder, config, torch.float32)


@contextmanager
def builder_in_this_process() -> Iterator[None]:
    """Run ONNX Runtime GenAI's builder here, which takes seconds to start anew for each model."""
    from onnxruntime_genai.models import builder

    def run(model: ModelSource, folder: Path, weights: str) -> None:
        names = {"float32": "fp32", "int8": "int8", "int4": "int4"}
        arguments = (None, str(model.path), str(folder), names[weights], "cpu", str(folder.parent))
        options = builder.parse_extra_options(*arguments, ["hf_token=false"])
        builder.create_model(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "run_builder", run)
        yield


def random_ids(batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    return torch.randint(families.VOCABULARY, (batch, length), generator=generator)


def transformers_logits(base: Path, input_ids: torch.Tensor) -> torch.Tensor:
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = network(input_ids=input_ids).logits
    return logits
