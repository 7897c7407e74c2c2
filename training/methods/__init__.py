"""Training methods, one file each: the rows that a method trains on, and its trainer.

The frame in `training.train` owns artifact, checkpoints, signals and metrics. The table of methods
is `METHODS` in `training.config.method`, with what a method needs before its trainer is imported.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from training.config.method import METHODS, MethodConfig
from training.data.row import Kind, Row
from tuneline.core.errors import DataError

if TYPE_CHECKING:
    from training.config import TrainingConfig
    from tuneline.models.source import ModelSource

KIND_TITLES: dict[Kind, str] = {
    "answer": "prompts with an answer",
    "preference": "preference pairs",
    "label": "answers with a label",
    "prompt": "prompts without an answer",
    "text": "plain text",
    "retrieval": "queries with passages",
}


def _no_check(_config: TrainingConfig, _rows: Sequence[Row], _file: str) -> None:
    """Check nothing."""


def _no_models(_config: TrainingConfig, _base: ModelSource, _tokenizer: Any) -> None:
    """Check nothing."""


def _any_heldout(_rows: Sequence[Row], _file: str) -> None:
    """Check nothing."""


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
    check: Callable[[TrainingConfig, Sequence[Row], str], None] = _no_check
    """`(config, training rows, file)` -> refuses what cannot work, before a model is loaded; raises
    ConfigError."""
    check_models: Callable[[TrainingConfig, ModelSource, Any], None] = _no_models
    """`(config, base, tokenizer)` -> refuses models that do not go together, before one is loaded;
    raises a TunelineError."""
    check_heldout: Callable[[Sequence[Row], str], None] = _any_heldout
    """`(held-out rows, file)` -> refuses rows that training and evaluation cannot compare; raises
    DataError."""
    sequences: Callable[[Any], Sequence[list[int]]] = lambda example: [example.input_ids]
    """An example -> its sequences of token ids, whole."""
    result: str = "a chat model"
    """The result of a training, for people."""
    columns: tuple[str, ...] = ()
    """Figures of the trainer log that the curve keeps, also of held-out rows. The
    picture draws the first one in place of the loss if `draws_columns` is set."""
    choosable: tuple[str, ...] = ()
    """Columns whose held-out figure may choose the best checkpoint. A higher figure is better."""
    draws_columns: bool = False
    task_type: Literal["CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"] = "CAUSAL_LM"
    """`SEQ_CLS` trains a score in place of the next token, `FEATURE_EXTRACTION` the states
    themselves, in a network without a head."""
    is_answered: bool = False
    """Whether its held-out rows have an expected answer, for exact match while it trains."""
    loss_must_change: bool = True
    """Whether a loss that stays the same from the first step on says that nothing is learned."""


def find_method(config: MethodConfig) -> Method:
    """Return the method that a configuration names."""
    module, _, attribute = config.trained_by.partition(":")
    method: Method = getattr(importlib.import_module(module), attribute)
    return method


def require_kinds(config: MethodConfig, rows: Sequence[Row], file: str) -> None:
    """Check that a method trains on rows of these kinds.

    Raises:
        DataError: It does not; the message names the method that the rows call for.
    """
    wrong = [row for row in rows if row.kind not in config.kinds]
    if not wrong:
        return
    kind = Counter(row.kind for row in wrong).most_common(1)[0][0]
    first = next(row for row in wrong if row.kind == kind)
    expected = " or ".join(KIND_TITLES[name] for name in config.kinds)
    others = [name for name, options in METHODS.items() if kind in options.kinds]
    raise DataError(
        f"{file}: {len(wrong):,} of {len(rows):,} rows are {KIND_TITLES[kind]}, the first on line "
        f"{first.line}; training.method {config.type} expects {expected}",
        hint=f"Set training.method: {{type: {others[0]}}}"
        + (f" (or {', '.join(others[1:])})" if others[1:] else "")
        + ", or give other rows.",
    )


def loss_metrics(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the losses at the end, and the held-out loss before training."""
    losses = [point["loss"] for point in points if "loss" in point]
    return {"train_loss": losses[-1] if losses else None, **before_after(points, "loss")}


def before_after(
    points: Sequence[dict[str, Any]], name: str, called: str | None = None
) -> dict[str, Any]:
    """Return a figure of the held-out rows after and before training, by another name if given."""
    measured = [point[f"eval_{name}"] for point in points if f"eval_{name}" in point]
    key = f"eval_{called or name}"
    return {
        key: measured[-1] if measured else None,
        f"{key}_before": measured[0] if measured else None,
    }
