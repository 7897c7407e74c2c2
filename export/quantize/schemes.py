"""Number formats that a model's linear layers are quantized to, as compressed-tensors stores them.

Round to nearest, symmetric, from only the weights: each row (or each group within a row) of a
weight W is divided by its scale s = max|W| / q and rounded, where q is half the width of the
format's range. fp8 and int8 compute with activations that the server quantizes token by token;
w4a16 keeps activations as they are. Format: https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from export.config import SchemeName
from export.weights.tensor_file import SAFETENSORS_DTYPES

HALF_RANGE = {"fp8": 448.0, "int8": 127.5, "w4a16": 7.5}
"""Half the width of float8_e4m3fn, of eight bits and of four."""

FORMATS = {"fp8": "float-quantized", "int8": "int-quantized", "w4a16": "pack-quantized"}

VERSION = "0.17.0"
"""Version of compressed-tensors whose format is written."""


@dataclass(frozen=True)
class Scheme:
    """A number format, and how many values of a row share a scale (None: all of them)."""

    name: SchemeName
    group_size: int | None = None


def quantize_rows(values: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize some rows of a weight.

    Args:
        values: Shape (rows, columns), in the number format of the unquantized model.
        scheme: With `group_size`, columns is a multiple of it.

    Returns:
        The codes: float8 or int8 of shape (rows, columns), or int32 of shape (rows, columns / 8)
        with the first value in the lowest four bits; and the scales, shape (rows, groups), in the
        number format of `values`.
    """
    num_rows, num_columns = values.shape
    groups = values.float().reshape(num_rows, -1, scheme.group_size or num_columns)
    exact = groups.abs().amax(dim=2) / HALF_RANGE[scheme.name]
    scales = exact.to(values.dtype)
    scales = torch.where(scales == 0, torch.finfo(values.dtype).eps, scales)
    # The server multiplies by the rounded scale.
    scaled = (groups / scales.float().unsqueeze(2)).reshape(num_rows, num_columns)
    if scheme.name == "fp8":
        return scaled.clamp_(-448, 448).to(torch.float8_e4m3fn), scales
    if scheme.name == "int8":
        return scaled.clamp_(-128, 127).round_().to(torch.int8), scales
    nibbles = scaled.clamp_(-8, 7).round_().add_(8).to(torch.uint8)
    packed = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return packed.contiguous().view(torch.int32), scales


def stored_tensors(
    weight: str, shape: tuple[int, ...], dtype: torch.dtype, scheme: Scheme
) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return name, format and shape of each tensor that stores one weight, in the order written."""
    num_rows, num_columns = shape
    module = weight.removesuffix(".weight")
    groups = num_columns // (scheme.group_size or num_columns)
    scale = (f"{module}.weight_scale", SAFETENSORS_DTYPES[dtype], (num_rows, groups))
    if scheme.name == "w4a16":
        return [
            (f"{module}.weight_packed", "I32", (num_rows, num_columns // 8)),
            scale,
            (f"{module}.weight_shape", "I64", (2,)),
        ]
    return [(weight, {"fp8": "F8_E4M3", "int8": "I8"}[scheme.name], shape), scale]


def quantization_config(scheme: Scheme, ignore: list[str]) -> dict[str, Any]:
    """Return the `quantization_config` of config.json; `ignore` names the unquantized layers."""
    number = {"num_bits": 4 if scheme.name == "w4a16" else 8}
    number["type"] = "float" if scheme.name == "fp8" else "int"  # type: ignore[assignment]
    weights = {
        **number,
        "symmetric": True,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "dynamic": False,
        "observer": "minmax",
    }
    activations = {
        **number,
        "symmetric": True,
        "strategy": "token",
        "group_size": None,
        "dynamic": True,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None if scheme.name == "w4a16" else activations,
        "output_activations": None,
        "format": FORMATS[scheme.name],
    }
    return {
        "quant_method": "compressed-tensors",
        "format": FORMATS[scheme.name],
        "quantization_status": "compressed",
        "version": VERSION,
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
