"""Direct preference optimization with TRL's DPOTrainer.

The loss is -log sigmoid(beta (r(chosen) - r(rejected))), where r is the log-probability of an
answer under the model minus that under the base (Rafailov et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import DPOConfig, DPOTrainer

from training.config import TrainingConfig
from training.data.row import Row
from training.loop.trl_head import require_trl_head
from training.methods import Method, before_after, loss_metrics
from training.methods.options import make_trainer, trl_config
from training.methods.preferences import (
    MovingReference,
    RenderedRows,
    by_length,
    check_options,
    drop_reference_adapter,
    pair_lengths,
    pairs_dataset,
    reference_model,
    render,
)
from training.rendering.pairs import Pair


def _check(config: TrainingConfig, _rows: Sequence[Row], _file: str) -> None:
    check_options(config, DPOConfig)


def _trainer(
    config: TrainingConfig,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train_rows: Sequence[Pair],
    heldout_rows: Sequence[Pair],
) -> DPOTrainer:
    args = trl_config(config, DPOConfig, arguments, max_length=config.max_length)
    trainer = make_trainer(
        config,
        _DpoTrainer,
        model=model,
        ref_model=reference_model(model),
        args=args,
        train_dataset=pairs_dataset(train_rows),
        eval_dataset=pairs_dataset(by_length(heldout_rows)),
        processing_class=tokenizer,
    )
    trainer.lengths = pair_lengths(config, train_rows)
    drop_reference_adapter(trainer.model)
    require_trl_head(trainer.model, "dpo", train_rows[0].sequences[0])
    return trainer


def _metrics(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    accuracy = before_after(points, "rewards/accuracies", "accuracy")
    # Before the first step all rewards are 0, and an accuracy of ties says nothing of the base.
    del accuracy["eval_accuracy_before"]
    return {**loss_metrics(points), **accuracy, **before_after(points, "rewards/margins", "margin")}


DPO = Method(
    render=render,
    trainer=_trainer,
    metrics=_metrics,
    check=_check,
    sequences=lambda pair: pair.sequences,
    columns=("rewards/margins", "rewards/accuracies"),
    choosable=("rewards/margins", "rewards/accuracies"),
)


class _DpoTrainer(RenderedRows, MovingReference, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on the token ids that were checked."""
