"""The `merge` and `parity` sections of a run, and the options of `tuneline export`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from tuneline.core.config import StrictModel
from tuneline.core.parity import Tolerances

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
SchemeName = Literal["fp8", "int8", "w4a16"]
GroupSize = Literal[32, 64, 128]
OnnxPrecision = Literal["fp32", "fp16", "int8", "int4"]
Graph = Literal["decoder", "logits"]
FormName = Literal[
    "quantized-fp8", "quantized-int8", "quantized-w4a16", "onnx-fp32", "onnx-int8", "onnx-int4",
    "gptq-int8", "gptq-w4a16", "awq-w4a16", "onnx-logits", "torchscript", "torch-export", "pruned",
]  # fmt: skip


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


class CalibrationConfig(StrictModel):
    """What a calibrated quantization looks at."""

    num_samples: PositiveInt = 256
    """Conversations drawn from the training rows."""
    max_length: PositiveInt = 2048
    """Tokens of each, at most."""


class CalibratedConfig(CalibrationConfig):
    """How a model is quantized with calibration, by llm-compressor."""

    method: Literal["gptq", "awq"]
    scheme: Literal["int8", "w4a16"]
    group_size: GroupSize = 128
    """Under `w4a16`, how many values of a row share a scale."""

    @model_validator(mode="after")
    def _awq_is_of_weights(self) -> CalibratedConfig:
        if self.method == "awq" and self.scheme != "w4a16":
            raise ValueError("awq takes the scheme w4a16 alone; gptq takes int8 too")
        return self


class ParityConfig(StrictModel):
    """What a form of the model may differ by from the reference."""

    tolerances: Tolerances | None = None
    """For the merged model. None takes the default of the number format that the weights are stored
    in; see docs/parity.md."""
    forms: dict[FormName, Tolerances] = Field(default={})
    """For other forms, by name; those left out take the default of their own number format."""


class OnnxConfig(StrictModel):
    """What an ONNX graph holds."""

    precision: OnnxPrecision = "fp32"
    """Numbers of the weights: `int8` and `int4` share a scale per 32 weights."""
    graph: Graph = "decoder"
    """`decoder` takes and gives a key-value cache and generates; `logits` scores in one pass."""


class PruneConfig(StrictModel):
    """How weights are set to zero by their magnitude; one of the two."""

    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """The share of each matrix's weights that become zero, smallest first."""
    pattern: Literal["2:4"] | None = None
    """`2:4`: of each four consecutive inputs of an output, the two smallest become zero."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> PruneConfig:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give sparsity or pattern, one of the two")
        return self
