"""The `merge` and `parity` sections of a run, and the options of `tuneline export`."""

from __future__ import annotations

from typing import Literal

from tuneline.core.config import StrictModel
from tuneline.core.parity import Tolerances

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
SchemeName = Literal["fp8", "int8", "w4a16"]
GroupSize = Literal[32, 64, 128]


class MergeConfig(StrictModel):
    """How an adapter is merged into its base."""

    dtype: Dtype = "auto"
    """Number format of the merged weights; `auto` keeps each tensor in its base's format."""
    merge_base: Literal["auto", "original", "dequantized"] = "auto"
    """Which weights an adapter that was trained on a 4-bit base (QLoRA) goes onto: the `original`
    ones, or those that training computed with, `dequantized` from NF4. `auto` measures both
    against the live model and keeps the closer, where the adapter's manifest says
    `load_in_4bit`; any other adapter goes onto the original."""
    quantize: SchemeName | None = None
    """Quantize the linear layers as they are merged: `fp8` and `int8` (weights and activations) or
    `w4a16` (weights in four bits)."""
    group_size: GroupSize = 128
    """Under `w4a16`, how many values of a row share a scale."""


class QuantizeConfig(StrictModel):
    """How a model is quantized."""

    scheme: SchemeName
    group_size: GroupSize = 128
    """Under `w4a16`, how many values of a row share a scale."""


class ParityConfig(StrictModel):
    """What a form of the model may differ by from the reference."""

    tolerances: Tolerances | None = None
    """None takes the default of the number format that the weights are stored in; see
    docs/parity.md."""
