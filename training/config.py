"""The sections of `run.yaml` that this room reads. Option names are those of peft and TRL."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tuneline.core.config import StrictModel

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]

DEFAULT_HELDOUT_FRACTION = 0.1


class DataConfig(StrictModel):
    """Where the rows come from and how held-out ones are set apart."""

    path: str = Field(json_schema_extra={"keyed": False})
    """JSON Lines, relative to the run.yaml: `{"instruction", "input", "output"}`,
    `{"messages": [...]}` or `{"prompt", "completion"}` on each line."""
    heldout_path: str | None = Field(default=None, json_schema_extra={"keyed": False})
    """A second file of the same shape, kept for evaluation alone."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the prompts of `path` set apart where there is no `heldout_path`; 0.1 if neither
    is given."""
    system_prompt: Annotated[str, Field(min_length=1)] | None = None
    """Put before every row that has no system message of its own."""
    seed: int = 0
    """Chooses which prompts are held out."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_split(cls, values: Any) -> Any:
        if isinstance(values, dict):
            given = [values.get(name) is not None for name in ("heldout_path", "heldout_fraction")]
            if all(given):
                raise ValueError("give heldout_path or heldout_fraction, not both")
            if not any(given):
                return {**values, "heldout_fraction": DEFAULT_HELDOUT_FRACTION}
        return values

    def recorded(self) -> dict[str, Any]:
        """What the manifest records: all but the paths, whose contents are inputs by digest."""
        return self.model_dump(mode="json", exclude={"path", "heldout_path"})


class TrainingConfig(StrictModel):
    """LoRA fine-tuning on the answers alone."""

    r: PositiveInt = 16
    """LoRA rank. vLLM serves adapters up to rank 512."""
    lora_alpha: PositiveInt = 32
    """Scale of the adapter: its weight is `lora_alpha / r`, or `lora_alpha / sqrt(r)` with
    `use_rslora`."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Which modules get an adapter: every linear layer but the output head, or names."""
    use_rslora: bool = False
    eos_token: str | None = None
    """A token of the vocabulary that ends an answer besides the model's own stop tokens, for base
    models whose chat template ends turns with a token they do not stop at."""

    learning_rate: PositiveFloat = 2e-4
    num_train_epochs: PositiveFloat = 3
    per_device_train_batch_size: PositiveInt = 8
    gradient_accumulation_steps: PositiveInt = 2
    max_length: PositiveInt = 2048
    """Longest row in tokens, prompt and answer together. A longer row is an error: cutting it would
    cut the stop token too."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.03
    """Below 1 a fraction of all steps, else a number of steps."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: PositiveFloat = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the base model's weights; the adapter is trained in float32. `auto` is bfloat16 on a GPU
    that computes in it and float32 elsewhere."""
    packing: bool = False
    """Put several short rows into one sequence of `max_length`; they do not see one another."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass: about a third slower, far less memory."""
    logging_steps: PositiveInt = Field(default=10, json_schema_extra={"keyed": False})
    eval_steps: PositiveInt | None = None
    """Optimizer steps between held-out losses; at the end of each epoch if not given."""
    save_steps: PositiveInt = Field(default=100, json_schema_extra={"keyed": False})
    """Optimizer steps between checkpoints that an interrupted run continues from."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(
                f"warmup_steps is a fraction below 1 or a whole number, found {self.warmup_steps:g}"
            )
        if "lm_head" in self.target_modules:
            raise ValueError(
                "target_modules: an adapter on lm_head is not trained (TRL computes the loss from "
                "its plain weight); remove lm_head"
            )
        return self


class EvaluationConfig(StrictModel):
    """Greedy answers to held-out prompts, compared with the expected ones."""

    max_new_tokens: PositiveInt = 256
    batch_size: PositiveInt = 16
    """Prompts answered at once, in this process or as concurrent requests."""
    num_rows: PositiveInt | None = None
    """The first rows of the held-out set; all if not given."""
    fields: Literal["lines", "json"] | None = None
    """How an answer falls into fields that are scored one by one: `Name: value` lines, or the
    keys of a JSON object. None scores whole answers alone."""


class ReferenceConfig(StrictModel):
    """The golden answers of base + adapter in float32."""

    num_prompts: PositiveInt = 64
    """The first prompts of the held-out set."""
    max_new_tokens: PositiveInt = 128
    top_logprobs: Annotated[int, Field(ge=1, le=20)] = 10
    """Most likely tokens recorded for each position; OpenAI's API gives at most 20."""
