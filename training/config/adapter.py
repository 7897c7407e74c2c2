"""The keys of the `training` section that say which parameters are trained, and how.

Names are those of peft's `LoraConfig`; `load_in_4bit` is transformers' name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from training.config.types import PositiveFloat, PositiveInt
from tuneline.core.config import StrictModel
from tuneline.core.vllm_limits import MAX_LORA_RANK

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Names = Annotated[list[str], Field(min_length=1)]


class AdapterConfig(StrictModel):
    """LoRA with its variants on a plain or a 4-bit base, or the whole model."""

    finetuning_type: Literal["lora", "full"] = "lora"
    """`lora` trains an adapter. `full` trains every parameter, in float32, and writes a model."""
    r: PositiveInt = 16
    """LoRA rank. vLLM serves adapters up to rank 512."""
    lora_alpha: PositiveInt = 32
    """Scale of the adapter: its weight is `lora_alpha / r`, or `lora_alpha / sqrt(r)` with
    `use_rslora`."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Not possible on fused experts."""
    target_modules: str | Names = "all-linear"
    """Which modules get an adapter: `all-linear` (every linear layer and all fused experts, but not
    the output head or a router), a list of names, or a regular expression."""
    exclude_modules: str | Names | None = None
    """Modules that get no adapter although `target_modules` names them."""
    target_parameters: Names | None = None
    """Parameters that get an adapter, next to `target_modules`: `mlp.experts.gate_up_proj`."""
    layers_to_transform: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None
    ) = None
    """Numbers of the layers that get an adapter; all if not given."""
    use_rslora: bool = False
    use_dora: bool = False
    """DoRA: direction and length of each weight are trained apart. vLLM serves it merged only."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the base are trained."""
    rank_pattern: dict[str, PositiveInt] = Field(default={})
    """Ranks of modules that do not have the rank `r`, by the end of their name."""
    alpha_pattern: dict[str, PositiveFloat] = Field(default={})
    """Values of `lora_alpha` of modules, by the end of their name."""
    modules_to_save: Names | None = None
    """Modules that are trained whole and saved with the adapter, such as `embed_tokens`."""
    trainable_token_indices: TokenIds | dict[str, TokenIds] | None = None
    """Rows of the embedding that are trained, by token id; or rows by the name of the module."""
    ensure_weight_tying: bool = False
    """Train a tied output layer with `modules_to_save` of its embedding."""
    lora_config: dict[str, Any] = Field(default={})
    """Every other option of the installed peft's `LoraConfig`, by its own name."""
    load_in_4bit: bool = False
    """QLoRA: train on the base in NF4 with double quantization, by bitsandbytes. The trained model
    is the adapter on the rounded base."""

    @model_validator(mode="after")
    def _check_target_modules(self) -> Self:
        if "lm_head" in self.target_modules:
            raise ValueError(
                "target_modules: an adapter on lm_head is not trained (the loss is computed from "
                "its plain weight); remove lm_head"
            )
        return self

    @model_validator(mode="after")
    def _check_lora_config(self) -> Self:
        fields = set(AdapterConfig.model_fields)
        known = sorted(set(self.lora_config) & fields - {"lora_config"})
        if known:
            raise ValueError(
                f"lora_config: {known[0]} is a key of its own; set training.{known[0]}"
            )
        fixed = sorted(set(self.lora_config) & {"task_type", "peft_type", "inference_mode"})
        if fixed:
            raise ValueError(f"lora_config: {fixed[0]} is set by the training method; remove it")
        return self

    @model_validator(mode="after")
    def _check_full(self) -> Self:
        given = sorted(
            (self.model_fields_set & set(AdapterConfig.model_fields)) - {"finetuning_type"}
        )
        given = [
            name
            for name in given
            if getattr(self, name) != AdapterConfig.model_fields[name].default
        ]
        if self.finetuning_type == "full" and given:
            raise ValueError(
                f"finetuning_type: full trains every parameter; {', '.join(given)} has no effect. "
                "Remove it, or set finetuning_type: lora"
            )
        return self

    def merged_only(self) -> list[str]:
        """Return the options with which vLLM cannot serve the result next to its base."""
        given = {
            "finetuning_type: full": self.finetuning_type == "full",
            "load_in_4bit": self.load_in_4bit,
            "use_dora": self.use_dora,
            f"bias: {self.bias}": self.bias != "none",
            "modules_to_save": self.modules_to_save is not None,
            "trainable_token_indices": self.trainable_token_indices is not None,
            "lora_config.lora_bias": bool(self.lora_config.get("lora_bias")),
            f"rank above {MAX_LORA_RANK}": max([self.r, *self.rank_pattern.values()])
            > MAX_LORA_RANK,
        }
        return [name for name, is_set in given.items() if is_set]
