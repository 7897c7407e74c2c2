"""The keys of the `training` section that the Trainer reads."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from training.config.types import PositiveFloat, PositiveInt
from tuneline.core.config import StrictModel

Optimizer = Literal[
    "adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit", "adafactor",
]  # fmt: skip
"""Optimizers by their names in TrainingArguments."""


Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "constant",
    "constant_with_warmup", "inverse_sqrt", "warmup_stable_decay",
]  # fmt: skip
"""Schedules of the learning rate by their names in TrainingArguments."""


class TrainerConfig(StrictModel):
    """The training loop, with the names of transformers' TrainingArguments."""

    learning_rate: PositiveFloat = 2e-4
    """2e-5 if not given and `finetuning_type` is `full`."""
    num_train_epochs: PositiveFloat = 3
    max_steps: PositiveInt | None = None
    """Optimizer steps of the whole training, in place of `num_train_epochs`."""
    per_device_train_batch_size: PositiveInt = 8
    gradient_accumulation_steps: PositiveInt = 2
    train_sampling_strategy: Literal["group_by_length", "random"] = "group_by_length"
    """`group_by_length` puts rows of like length into a batch, which saves most of the padding."""
    max_length: PositiveInt = 2048
    """Longest row in tokens, prompt and answer together. A longer row is an error: cutting it would
    cut the stop token too."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.03
    """Below 1 a fraction of all steps, else a number of steps."""
    lr_scheduler_type: Scheduler = "cosine"
    lr_scheduler_kwargs: dict[str, int | float | str] = Field(default={})
    """Options of the schedule by transformers' names, such as `min_lr_rate: 0.1` of
    `cosine_with_min_lr`, or `num_decay_steps: 100` of `warmup_stable_decay`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0
    router_aux_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the router's loss of a mixture of experts, which evens out the use of experts. With
    0 all losses are nats per answer token."""
    seed: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the base model's weights; the adapter is trained in float32. `auto` is bfloat16 on a GPU
    that computes in it and float32 elsewhere. On a CPU with AVX512-BF16 or AMX, bfloat16 takes half
    of the memory, and large models train faster in it."""
    packing: bool = False
    """Put several short rows into one sequence of `max_length`. Before the first step, a test on
    the loaded model checks that rows do not see one another; if they do, the model is refused."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Compute activations again in the backward pass: about a third slower, far less memory. `auto`
    does so if the estimated memory of a step is above half of the free memory; the result is the
    same."""
    optim: Optimizer = "adamw_torch_fused"
    """8-bit optimizers keep the two moments of a large matrix in a byte each; paged ones move them
    to the host's memory when the GPU's is full."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """`auto` is flash_attention_2 if the package flash-attn is installed and the base model is
    in bfloat16 on a GPU, else torch's own attention."""
    use_liger_kernel: bool = False
    """Liger's kernels for norms, rotary embeddings and the MLP; they need a GPU."""
    logging_steps: PositiveInt = Field(default=10, json_schema_extra={"keyed": False})
    dataloader_num_workers: Annotated[int, Field(ge=0)] = Field(
        default=0, json_schema_extra={"keyed": False}
    )
    """Processes that put batches together; 0 is the process that trains. The result is the same."""

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(
                f"warmup_steps is a fraction below 1 or a whole number, found {self.warmup_steps:g}"
            )
        return self
