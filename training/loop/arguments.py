"""The keyword arguments of TrainingArguments that every method shares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from training.config import TrainingConfig
from training.loop.ranks import num_ranks
from training.model import resolve_dtype
from tuneline.core.errors import ConfigError


def trainer_arguments(config: TrainingConfig, work: Path, *, resumed: bool) -> dict[str, Any]:
    """Return the arguments; checkpoints go into `work`."""
    return {
        "output_dir": str(work),
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": config.per_device_train_batch_size,
        # A step has the same rows, whatever the number of processes.
        "gradient_accumulation_steps": config.gradient_accumulation_steps // num_ranks(),
        "ddp_find_unused_parameters": False,
        "warmup_steps": config.warmup_steps,
        "lr_scheduler_type": config.lr_scheduler_type,
        "lr_scheduler_kwargs": config.lr_scheduler_kwargs,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_epsilon": config.adam_epsilon,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "bf16": resolve_dtype(config.dtype) is torch.bfloat16,
        "gradient_checkpointing": config.gradient_checkpointing is True,
        "optim": config.optim,
        "use_liger_kernel": config.use_liger_kernel,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "eval_strategy": "steps",
        "eval_steps": config.eval_steps or 1,  # see evaluate_each_epoch
        "eval_on_start": not resumed,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": None,  # see CheckpointMarks
        "dataloader_num_workers": config.dataloader_num_workers,
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
    }


def require_schedule(config: TrainingConfig) -> None:
    """Make the schedule of the learning rate, and forget it.

    Raises:
        ConfigError: transformers refuses the options of the schedule.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate or 1.0)
    try:
        get_scheduler(
            config.lr_scheduler_type, optimizer, num_warmup_steps=1, num_training_steps=1000,
            scheduler_specific_kwargs=dict(config.lr_scheduler_kwargs),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"training.lr_scheduler_kwargs: transformers refuses the options of "
            f"{config.lr_scheduler_type}: {error}"
        ) from None


def evaluate_each_epoch(trainer: Any) -> None:
    """Set `eval_steps` to the length of an epoch.

    With `eval_strategy="epoch"` the Trainer evaluates after the checkpoint of the same step. A run
    that continues from the checkpoint then has other random numbers and lacks that loss.
    """
    batches = len(trainer.get_train_dataloader())
    trainer.args.eval_steps = math.ceil(batches / trainer.args.gradient_accumulation_steps)
