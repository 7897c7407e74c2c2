"""The options of adapter_config.json that Tuneline knows, one class per part of PEFT.

The merge reads the class of each of its methods. Serving reads all options of a LoRA adapter.
"""

from __future__ import annotations

from typing import Literal

from pydantic import FiniteFloat, PositiveInt

from tuneline.models.schemas import JsonForm, Names, Pattern, TokenIds

NEUTRAL_OPTIONS = frozenset({
    "auto_mapping", "inference_mode", "peft_version", "revision", "task_type",
})  # fmt: skip
"""Options of every method that do not change what the tensors mean."""

LORA_NEUTRAL_OPTIONS = frozenset({
    "corda_config", "eva_config", "fan_in_fan_out", "init_lora_weights",
    "lora_dropout", "lora_ga_config", "megatron_core", "qalora_group_size", "runtime_config",
})  # fmt: skip
"""Options of LoRA that do not change what the tensors mean. `init_lora_weights` has values that
change the base; see NEUTRAL_INITIALISATIONS. PEFT reads the settings of such a value only with it,
and keeps them in an adapter that it converted back to the base's own weights."""


class TargetOptions(JsonForm):
    """The options of adapter_config.json that all methods have."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    target_modules: Names | Pattern | None = None
    exclude_modules: Names | Pattern | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Pattern | list[Pattern] | None = None


class LoraOptions(JsonForm):
    """The options of adapter_config.json that say how a product is scaled."""

    r: PositiveInt = 8
    lora_alpha: FiniteFloat = 8
    rank_pattern: dict[Pattern, PositiveInt] | None = None
    alpha_pattern: dict[Pattern, FiniteFloat] | None = None
    use_rslora: bool | None = None
    ensure_weight_tying: bool | None = None


class LoraBiasOptions(JsonForm):
    """The option of adapter_config.json that gives B a bias."""

    lora_bias: bool | None = None


class DoraOptions(JsonForm):
    """The option of adapter_config.json that turns DoRA on."""

    use_dora: bool | None = None


class BiasOptions(JsonForm):
    """The option of adapter_config.json that says which biases are trained."""

    bias: Literal["none", "all", "lora_only"] = "none"


class ExpertOptions(JsonForm):
    """The option of adapter_config.json that names parameters instead of modules."""

    target_parameters: Names | None = None


class CopyOptions(JsonForm):
    """The option of adapter_config.json that names modules to replace."""

    modules_to_save: Names | None = None


class TokenOptions(JsonForm):
    """The option of adapter_config.json that lists trained tokens."""

    trainable_token_indices: TokenIds | dict[str, TokenIds] | None = None


class AdapterOptions(
    TargetOptions,
    LoraOptions,
    LoraBiasOptions,
    DoraOptions,
    BiasOptions,
    ExpertOptions,
    CopyOptions,
    TokenOptions,
):
    """adapter_config.json, as PEFT's LoraConfig writes it."""


KNOWN_LORA_OPTIONS = NEUTRAL_OPTIONS | LORA_NEUTRAL_OPTIONS | AdapterOptions.model_fields.keys()
"""Options of a LoRA adapter whose meaning is known, or that have no meaning for its tensors."""
