"""A PEFT LoRA adapter on disk: its options, the names of its tensors, and what it may not hold."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.weights.families import EMBEDDINGS, HEAD
from export.weights.tensor_file import (
    TORCH_DTYPES,
    Stored,
    TensorFile,
    is_finite,
    pieces_of,
    read_tensor_file,
)
from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    foreign_options,
    read_adapter_config,
)

PREFIX = "base_model.model."

SUFFIXES = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_B.bias": "lora_B.bias",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".token_adapter.trainable_tokens_delta": "tokens",
    ".token_adapter.base_layer.weight": "base_layer",
    ".base_layer.bias": "bias",
    ".base_layer.weight": "base_layer",
}


@dataclass(frozen=True)
class Adapter:
    """An adapter's options and the header of its weights; no weight is held in memory."""

    path: Path
    config: dict[str, Any]
    weights: TensorFile
    weight: float | None = None
    """Its share where several adapters are summed; None for one adapter as it is."""

    @property
    def named_base(self) -> str:
        base = self.config.get("base_model_name_or_path")
        return f"The adapter names {base!r} as its base."


def read_adapter(path: Path, weight: float | None = None) -> Adapter:
    """Open a PEFT LoRA folder and check that everything in it is something we merge.

    Raises:
        ArtifactError: Not a LoRA adapter, pickled, corrupt, with NaN or infinite values, or using
            an option that changes what merging means and is not supported; the option is named.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder; expected a PEFT adapter folder")
    config = read_adapter_config(path)
    _refuse_options(path, config)
    if not (path / ADAPTER_WEIGHTS).is_file():
        pickles = sorted(file.name for file in path.glob("*.bin"))
        if pickles:
            raise ArtifactError(
                f"{path}: holds only pickled weights ({', '.join(pickles)}); expected "
                f"{ADAPTER_WEIGHTS}",
                hint="A pickle can run code when it is read. Convert it once where you trust it: "
                "load it with peft and save it again.",
            )
    weights = read_tensor_file(path / ADAPTER_WEIGHTS)
    if not weights.entries:
        raise ArtifactError(f"{weights.path}: holds no tensors")
    _check_finite(weights)
    return Adapter(path, config, weights, weight)


def parse_key(adapter: Adapter, key: str) -> tuple[str, str]:
    """The module (as the base names it) and the part of it that an adapter tensor is; for a tensor
    that was saved whole, its own name and `whole`."""
    where = adapter.weights.path
    if key.startswith(PREFIX):
        name = key.removeprefix(PREFIX)
        for suffix, part in SUFFIXES.items():
            if name.endswith(suffix):
                return name.removesuffix(suffix), part
        if _is_saved_whole(adapter, name):
            return name, "whole"
        if name.endswith(".bias"):
            if adapter.config.get("bias", "none") == "none":
                raise ArtifactError(f"{where}: {key}: a bias, though the option bias is 'none'")
            return name.removesuffix(".bias"), "bias"
        if name.endswith(".weight") and ".lora_" not in name:
            raise ArtifactError(
                f"{where}: {key}: a module saved whole that modules_to_save in {ADAPTER_CONFIG} "
                "does not name"
            )
    raise ArtifactError(
        f"{where}: {key}: a tensor of an unknown kind; expected names such as "
        f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
    )


def _is_saved_whole(adapter: Adapter, name: str) -> bool:
    """Whether a tensor belongs to a module of `modules_to_save`, or to an embedding or output
    layer, which PEFT saves whole of its own accord where the vocabulary was resized."""
    path = name.split(".")[:-1]
    if path and path[-1] in (*EMBEDDINGS, HEAD):
        return True
    modules = [".".join(path[: length + 1]) for length in range(len(path))]
    saved = adapter.config.get("modules_to_save") or []
    return any(module.endswith(target) for module in modules for target in saved)


def rank_and_scale(adapter: Adapter, module: str) -> tuple[int, float]:
    config = adapter.config
    rank = _for_module(adapter, "rank_pattern", module, config.get("r", 8))
    alpha = _for_module(adapter, "alpha_pattern", module, config.get("lora_alpha", 8))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _for_module(adapter: Adapter, option: str, module: str, default: Any) -> Any:
    """The first pattern that matches the end of the module's name decides, as in PEFT."""
    for pattern, value in (adapter.config.get(option) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def matches(targets: Any, name: str) -> bool:
    return isinstance(targets, list) and any(
        name == target or name.endswith(f".{target}") for target in targets
    )


def _refuse_options(path: Path, config: dict[str, Any]) -> None:
    refused = foreign_options(config)
    if refused:
        raise ArtifactError(
            f"{path / ADAPTER_CONFIG}: merging is not supported with {', '.join(refused)}",
            hint="Merge it with peft (merge_and_unload), or train without that option.",
        )


def _check_finite(weights: TensorFile) -> None:
    for entry in weights.entries:
        if entry.dtype not in TORCH_DTYPES:
            raise ArtifactError(
                f"{weights.path}: {entry.name}: is stored as {entry.dtype}; expected one of "
                f"{', '.join(TORCH_DTYPES)}"
            )
        if not all(is_finite(piece) for piece in pieces_of(Stored(weights, entry))):
            raise ArtifactError(f"{weights.path}: {entry.name}: holds NaN or infinity")
