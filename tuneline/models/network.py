"""The sizes of a network, read from config.json and the headers of its safetensors files."""

from __future__ import annotations

import fnmatch
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.core.errors import ArtifactError
from tuneline.models.folder import CONFIG, read_json, weight_files
from tuneline.models.schemas import ModelConfig

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}
"""Bytes of a number, by the name of its format in safetensors; 1 for every other format."""
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
OTHER_NAMES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "intermediate_size": ("ffn_dim", "n_inner", "moe_intermediate_size"),
}


@dataclass(frozen=True)
class Network:
    """Sizes in elements, not in bytes."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Of all experts that one token uses, in a mixture of experts."""
    query_size: int
    key_value_size: int
    """Of the keys, and again of the values."""
    vocab_size: int
    tied: bool
    tensors: Mapping[str, tuple[int, ...]]
    file_bytes: int
    num_beside: int = 0
    """Parameters of models that are in memory with this one in training."""

    @property
    def num_parameters(self) -> int:
        """Parameters of the loaded network: a tied output head has none of its own."""
        return sum(
            math.prod(shape)
            for name, shape in self.tensors.items()
            if not (self.tied and name.startswith("lm_head"))
        )

    def linear_shapes(self, targets: str | list[str] = "all-linear") -> dict[str, tuple[int, int]]:
        """Return (out, in) of each linear layer that an adapter's `target_modules` name."""
        found = {}
        for name, shape in self.tensors.items():
            module = name.removesuffix(".weight")
            if len(shape) != 2 or module == name or not any(p.isdigit() for p in module.split(".")):
                continue
            if targets == "all-linear" or names_module(targets, module):
                found[module] = (shape[0], shape[1])
        return found

    def expert_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Return (experts, in, out) of the tensors that hold all experts of a layer, by name."""
        return {
            name: (shape[0], shape[1], shape[2])
            for name, shape in self.tensors.items()
            if len(shape) == 3 and (".experts." in name or "moe" in name)
        }

    def four_bit_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the weights that bitsandbytes keeps in 4 bits: no fused experts."""
        return [
            shape
            for name, shape in self.tensors.items()
            if len(shape) == 2 and re.search(r"\.\d+\.", name) and ".experts." not in name
        ]


def names_module(targets: str | list[str], module: str) -> bool:
    """Return whether a regular expression, or a list of names and patterns, names a module."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    last = module.rpartition(".")[2]
    return any(last == target or fnmatch.fnmatch(module, f"*.{target}") for target in targets)


def read_network(folder: Path) -> Network:
    """Return the sizes of the network in a model folder; no weight is read.

    Raises:
        ArtifactError: config.json names no sizes of a decoder, or a file cannot be read.
    """
    config = read_json(folder / CONFIG, ModelConfig)
    text: dict[str, Any] = config.get("text_config") or config
    tensors: dict[str, tuple[int, ...]] = {}
    file_bytes = 0
    for path in weight_files(folder):
        for name, (dtype, shape) in _header(path).items():
            tensors[name] = shape
            file_bytes += ITEM_BYTES.get(dtype, 1) * math.prod(shape)
    hidden = _size(folder, text, "hidden_size")
    heads = _size(folder, text, "num_attention_heads")
    head_dim = text.get("head_dim") or hidden // heads
    key_value_heads = text.get("num_key_value_heads") or heads
    experts = text.get("num_experts_per_tok") or 1
    width = text.get("moe_intermediate_size") if experts > 1 else None
    return Network(
        num_layers=_size(folder, text, "num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=experts * (width or _size(folder, text, "intermediate_size", 4 * hidden)),
        query_size=heads * head_dim,
        key_value_size=key_value_heads * head_dim,
        vocab_size=_size(folder, text, "vocab_size"),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
        tensors=tensors,
        file_bytes=file_bytes,
    )


def _size(folder: Path, config: dict[str, Any], name: str, default: int | None = None) -> int:
    for key in (name, *OTHER_NAMES.get(name, ())):
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    if default is not None:
        return default
    raise ArtifactError(f"{folder / CONFIG}: {name} is missing; expected a positive number")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file.

    Raises:
        ArtifactError: The file is missing, or its header cannot be read.
    """
    return {name: shape for name, (_, shape) in _header(path).items()}


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return format and shape of each tensor of a file; the library itself imports numpy."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its length is {length} bytes")
            header = json.loads(file.read(length))
        return {
            name: (str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, struct.error, ValueError, AttributeError, LookupError, TypeError) as error:
        raise ArtifactError(f"{path}: the header cannot be read: {error}") from None
