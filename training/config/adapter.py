"""The keys of the `training` section that peft reads."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from training.config.types import PositiveInt
from tuneline.core.config import StrictModel


class AdapterConfig(StrictModel):
    """A LoRA adapter, with peft's names."""

    r: PositiveInt = 16
    """LoRA rank. vLLM serves adapters up to rank 512."""
    lora_alpha: PositiveInt = 32
    """Scale of the adapter: its weight is `lora_alpha / r`, or `lora_alpha / sqrt(r)` with
    `use_rslora`."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Which modules get an adapter: every linear layer but the output head, or names."""
    use_rslora: bool = False

    @model_validator(mode="after")
    def _check_target_modules(self) -> Self:
        if "lm_head" in self.target_modules:
            raise ValueError(
                "target_modules: an adapter on lm_head is not trained (the loss is computed from "
                "its plain weight); remove lm_head"
            )
        return self
