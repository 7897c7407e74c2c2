"""The `training` section."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from training.config.adapter import AdapterConfig
from training.config.checkpoints import CheckpointConfig
from training.config.launch import LaunchConfig, launch_problem
from training.config.method import METHODS, MethodConfig, SftConfig
from training.config.tracking import TrackingConfig
from training.config.trainer import TrainerConfig
from training.config.types import TrainOn

FULL_LEARNING_RATE = 2e-5


class TrainingConfig(TrackingConfig, CheckpointConfig, TrainerConfig, AdapterConfig):
    """Fine-tuning of an adapter, or of the whole model."""

    other_names: ClassVar[dict[str, str]] = {
        "lora_r": "r", "lora_rank": "r", "max_seq_length": "max_length",
        "sequence_len": "max_length", "cutoff_len": "max_length",
        "micro_batch_size": "per_device_train_batch_size",
        "batch_size": "per_device_train_batch_size", "num_epochs": "num_train_epochs",
        "epochs": "num_train_epochs", "lr": "learning_rate", "optimizer": "optim",
        "lr_scheduler": "lr_scheduler_type", "warmup_ratio": "warmup_steps",
        "sample_packing": "packing", "lora_target_modules": "target_modules",
    }  # fmt: skip

    method: MethodConfig = SftConfig()
    """The training method and its options."""
    train_on: TrainOn = "all_turns"
    """Which assistant turns of a conversation are trained: all, or the last only."""
    eos_token: str | None = None
    """A token of the vocabulary that ends an answer besides the model's own stop tokens, for base
    models whose chat template ends turns with a token they do not stop at."""
    launch: LaunchConfig | None = Field(default=None, json_schema_extra={"keyed": False})
    """Several processes; one process if not given. A step has the same rows whatever the number:
    each process takes its share of `gradient_accumulation_steps`."""

    @model_validator(mode="before")
    @classmethod
    def _choose_learning_rate(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("learning_rate") is not None:
            return values
        method = values.get("method")
        kind = method.get("type") if isinstance(method, dict) else getattr(method, "type", None)
        is_full = values.get("finetuning_type") == "full"
        own = METHODS[kind].adapter_learning_rate if kind in METHODS else None
        chosen = [] if own is None else [own]
        chosen += [FULL_LEARNING_RATE] if is_full else []
        if chosen:
            return {**values, "learning_rate": min(chosen)}
        return values

    @model_validator(mode="after")
    def _check_scorer(self) -> Self:
        if self.method.type == "reward" and (self.finetuning_type == "full" or self.load_in_4bit):
            raise ValueError(
                "method: a reward model is trained with LoRA on the plain base; remove "
                "finetuning_type and load_in_4bit"
            )
        if self.method.type in ("embedding", "reranker") and self.load_in_4bit:
            raise ValueError(
                f"method: {self.method.type} is trained on the plain base; remove load_in_4bit"
            )
        return self

    @model_validator(mode="after")
    def _check_launch(self) -> Self:
        problem = launch_problem(self)
        if problem is not None:
            raise ValueError(f"launch: {problem}")
        return self
