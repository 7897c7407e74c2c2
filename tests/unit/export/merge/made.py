"""Adapters and model folders that exist in memory only: names and shapes, without any file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.merge.adapter import PREFIX, Adapter
from export.weights.model_folder import ModelFolder
from export.weights.tensor_file import TensorEntry, TensorFile

Shapes = Mapping[str, tuple[int, ...]]


def tensor_file(shapes: Shapes, path: Path = Path("weights.safetensors")) -> TensorFile:
    entries, position = [], 0
    for name, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        entries.append(TensorEntry(name, "F32", shape, position, end))
        position = end
    return TensorFile(path, b"", {}, tuple(entries))


def adapter_of(*names: str, **options: Any) -> Adapter:
    """An adapter with tensors of these names, behind PEFT's prefix."""
    file = tensor_file({f"{PREFIX}{name}": (1, 1) for name in names}, Path("a/adapter.safetensors"))
    return Adapter(Path("a"), {"peft_type": "LORA", **options}, file)


def base_of(shapes: Shapes, **config: Any) -> ModelFolder:
    file = tensor_file(shapes)
    tensors = {entry.name: entry for entry in file.entries}
    values = {"model_type": "llama", "num_hidden_layers": 2, **config}
    return ModelFolder(Path("base"), values, (file,), None, tensors, dict.fromkeys(tensors, file))
