"""The `export` section of a run.yaml, and the options of `tuneline export`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from tuneline.core.config import StrictModel
from tuneline.core.tolerances import Tolerances

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
SchemeName = Literal["fp8", "int8", "w4a16"]
GroupSize = Literal[32, 64, 128]
Graph = Literal["decoder", "logits"]


def known_form(name: str) -> str:
    """Return a name that is a row of `export.forms.FORMS`.

    Raises:
        ValueError: The table has no such row.
    """
    from export.forms import FORMS  # it imports this module

    if name not in FORMS:
        raise ValueError(f"{name!r} is not a form; expected {', '.join(FORMS)}")
    return name


FormName = Annotated[str, AfterValidator(known_form)]
"""A row of `export.forms.FORMS`."""
OnnxWeights = Literal["float32", "float16", "int8", "int4"]


class MergeConfig(StrictModel):
    """How an adapter is merged into its base model."""

    dtype: Dtype = "auto"
    """Number format of the merged weights; `auto` keeps each tensor in its base's format."""
    merge_base: Literal["auto", "original", "dequantized"] = "auto"
    """Which base weights the adapter of a 4-bit base (QLoRA) is merged into: the `original` ones,
    or those that training computed with, `dequantized` from NF4. `auto` measures both against the
    live model and keeps the closer, if the adapter's manifest says `load_in_4bit`; any other
    adapter is merged into the original weights."""
    quantize: SchemeName | None = None
    """Quantize the linear layers during the merge: `fp8` and `int8` (weights and activations) or
    `w4a16` (weights in four bits)."""
    group_size: GroupSize = 128
    """Number of values of a row that share a scale, under `w4a16`."""


class QuantizeConfig(StrictModel):
    """How a model is quantized."""

    scheme: SchemeName
    """`fp8` and `int8` (weights and activations) or `w4a16` (weights in four bits)."""
    group_size: GroupSize = 128
    """Number of values of a row that share a scale, under `w4a16`."""


class CalibrationConfig(StrictModel):
    """The data that a calibrated quantization sees."""

    other_names: ClassVar[dict[str, str]] = {
        "num_samples": "num_calibration_samples",
        "max_length": "max_seq_length",
    }
    num_calibration_samples: PositiveInt = 256
    """Conversations drawn from the training rows."""
    max_seq_length: PositiveInt = 2048
    """Largest number of tokens of a conversation; the rest is cut off."""


class CalibratedConfig(CalibrationConfig):
    """How a model is quantized with calibration, by llm-compressor."""

    method: Literal["gptq", "awq"]
    """`gptq` (int8, w4a16) or `awq` (w4a16)."""
    scheme: Literal["int8", "w4a16"]
    """`int8` (weights and activations) or `w4a16` (weights in four bits)."""
    group_size: GroupSize = 128
    """Number of values of a row that share a scale, under `w4a16`."""

    @model_validator(mode="after")
    def _check_scheme_of_awq(self) -> Self:
        if self.method == "awq" and self.scheme != "w4a16":
            raise ValueError("awq takes only the scheme w4a16; gptq also takes int8")
        return self


class ParityConfig(StrictModel):
    """How much a form of the model may differ from the reference."""

    tolerances: Tolerances | None = None
    """For the merged model. None takes the default for the number format of its weights; see
    docs/parity.md."""
    forms: dict[FormName, Tolerances] = Field(default={})
    """For other forms, by name; a form that is not listed takes the default for its weights."""


class OnnxConfig(StrictModel):
    """The weights and the interface of an ONNX graph."""

    other_names: ClassVar[dict[str, str]] = {"precision": "weights"}
    weights: OnnxWeights = "float32"
    """Number format of the weights; under `int8` and `int4`, 32 weights share a scale."""
    graph: Graph = "decoder"
    """`decoder` takes and returns a key-value cache and generates; `logits` scores in one pass."""


class GraphConfig(StrictModel):
    """TorchScript and torch.export graphs have no options."""


class PruneConfig(StrictModel):
    """How weights are set to zero by their magnitude; give exactly one of the two."""

    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of each matrix's weights that become zero, smallest first."""
    pattern: Literal["2:4"] | None = None
    """`2:4`: of each four consecutive inputs of an output, the two smallest become zero."""

    @model_validator(mode="after")
    def _check_one_is_given(self) -> Self:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give sparsity or pattern, one of the two")
        return self


class ExportConfig(StrictModel):
    """The forms that the trained model is exported to, each proven against it."""

    merge: MergeConfig = MergeConfig()
    parity: ParityConfig = ParityConfig()
    forms: tuple[FormName, ...] = ()
    """Forms to make of the merged model and to prove, next to the model that is served; see the
    table in docs/export.md. Those with `w4a16` use groups of `merge.group_size` values."""
    calibration: CalibrationConfig = CalibrationConfig()
    """For the forms that calibrate on the training rows."""
    prune: PruneConfig | None = None
    """For the form `pruned`, which needs it."""

    @model_validator(mode="after")
    def _check_forms(self) -> Self:
        from export.forms import FORMS  # it imports this module

        if len(set(self.forms)) < len(self.forms):
            raise ValueError("forms lists a form twice")
        asked = [FORMS[name] for name in self.forms]
        for form in asked:
            form.options(self)
        if self.prune is not None and not any(form.config is PruneConfig for form in asked):
            raise ValueError("prune is given, and forms lists no form that it configures")
        if self.forms and self.merge.quantize is not None:
            raise ValueError(
                "forms are made of the unquantized merge: leave out merge.quantize, and list "
                f"quantized-{self.merge.quantize} in forms"
            )
        return self
