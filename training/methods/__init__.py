"""Training methods, one file each: the rows that a method trains on, and its trainer.

The frame in `training.train` owns artifact, checkpoints, signals and metrics. The table of methods
is `METHODS` in `training.config.method`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from training.config.method import METHODS, MethodConfig


@dataclass(frozen=True)
class Method:
    """The part of training that one method defines; the frame does the rest."""

    render: Callable[..., Sequence[Any]]
    """`(config, tokenizer, rows, stop_ids, file)` -> one checked example per row. An example has
    `num_trained_tokens`."""
    trainer: Callable[..., Any]
    """`(config, model, tokenizer, arguments, train_rows, heldout_rows)` -> a transformers Trainer
    that is ready to train. `arguments` are keyword arguments of TrainingArguments."""
    metrics: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    """The points of the curve -> the method's own metrics for the manifest."""


def find_method(config: MethodConfig) -> Method:
    """Return the method that a configuration names."""
    module, _, attribute = METHODS[config.type].partition(":")
    method: Method = getattr(importlib.import_module(module), attribute)
    return method
