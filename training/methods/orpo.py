"""Odds ratio preference optimization with TRL's ORPOTrainer (Hong et al., 2024).

The loss is the mean negative log-probability of the chosen answer's tokens, minus beta times the
log-sigmoid of the log odds ratio of chosen against rejected. It needs no reference model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from training.config import TrainingConfig
from training.data.row import Row
from training.methods import Method, before_after, loss_metrics
from training.methods.options import make_trainer, trl_config
from training.methods.preferences import (
    RenderedRows,
    by_length,
    check_options,
    pair_lengths,
    render,
)
from training.rendering.chat import IGNORED
from training.rendering.pairs import Pair


def _check(config: TrainingConfig, _rows: Sequence[Row], _file: str) -> None:
    check_options(config, ORPOConfig)


def _trainer(
    config: TrainingConfig,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train_rows: Sequence[Pair],
    heldout_rows: Sequence[Pair],
) -> ORPOTrainer:
    args = trl_config(
        config,
        ORPOConfig,
        arguments,
        max_length=config.max_length,
        remove_unused_columns=False,
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    trainer = make_trainer(
        config,
        _OrpoTrainer,
        model=model,
        args=args,
        train_dataset=_as_dataset(train_rows),
        eval_dataset=_as_dataset(by_length(heldout_rows)),
        processing_class=tokenizer,
    )
    trainer.lengths = pair_lengths(config, train_rows)
    # TRL takes both from the base's config.json.
    trainer.aux_loss_coef = config.router_aux_loss_coef
    trainer.aux_loss_enabled = config.router_aux_loss_coef > 0
    return trainer


def _as_dataset(rows: Sequence[Pair]) -> Dataset:
    """Return pairs in the columns of ORPO's collator: each side whole, the prompt not trained."""
    columns: dict[str, list[list[int]]] = {
        "prompt_input_ids": [row.prompt_ids for row in rows],
        "prompt_attention_mask": [[1] * len(row.prompt_ids) for row in rows],
    }
    for side in ("chosen", "rejected"):
        answers = [getattr(row, f"{side}_ids") for row in rows]
        whole = [row.prompt_ids + answer for row, answer in zip(rows, answers, strict=True)]
        columns[f"{side}_input_ids"] = whole
        columns[f"{side}_attention_mask"] = [[1] * len(ids) for ids in whole]
        columns[f"{side}_labels"] = [
            [IGNORED] * len(row.prompt_ids) + answer
            for row, answer in zip(rows, answers, strict=True)
        ]
    return Dataset.from_dict(columns)


def _metrics(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {**loss_metrics(points), **before_after(points, "rewards/accuracies", "accuracy")}


ORPO = Method(
    render=render,
    trainer=_trainer,
    metrics=_metrics,
    check=_check,
    sequences=lambda pair: pair.sequences,
    columns=("log_odds_chosen", "rewards/accuracies"),
    choosable=("log_odds_chosen", "rewards/accuracies"),
)


class _OrpoTrainer(RenderedRows, ORPOTrainer):  # type: ignore[misc]
    """ORPOTrainer on the token ids that were checked, with the loss on answers only.

    TRL's own tokenization writes a second end token after the template's line end, and its
    likelihood term trains the prompt too.
    """

    def tokenize_row(self, feature: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        """Return the row as it is: it has token ids already."""
        return feature

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Any, ...]:
        """Return what TRL computes, with the likelihood term of the answer's tokens only."""
        found = super().concatenated_forward(model, batch)
        labels = batch["chosen_labels"][:, 1:].to(found[2].device)
        logits = found[2][:, : labels.shape[1]].float()
        likelihood = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED
        )
        return (*found[:4], likelihood, *found[5:])
