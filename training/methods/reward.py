"""A reward model with TRL's RewardTrainer: a score in place of the next token.

The loss is -log sigmoid(s(chosen) - s(rejected)), where s is the score that a new linear layer
reads at the answer's last token (Bradley and Terry, 1952).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset
from trl import RewardConfig, RewardTrainer

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
from training.rendering.pairs import Pair
from tuneline.core.errors import DataError
from tuneline.core.messages import Message
from tuneline.models.chat import conversation_token_ids


def _check(config: TrainingConfig, _rows: Sequence[Row], _file: str) -> None:
    check_options(config, RewardConfig)


def _trainer(
    config: TrainingConfig,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train_rows: Sequence[Pair],
    heldout_rows: Sequence[Pair],
) -> RewardTrainer:
    _pad_apart(tokenizer, [*train_rows, *heldout_rows])
    args = trl_config(config, RewardConfig, arguments, max_length=config.max_length)
    trainer = make_trainer(
        config,
        _RewardTrainer,
        model=model,
        args=args,
        train_dataset=_as_dataset(train_rows),
        eval_dataset=_as_dataset(by_length(heldout_rows)),
        processing_class=tokenizer,
    )
    trainer.lengths = pair_lengths(config, train_rows)
    return trainer


def _pad_apart(tokenizer: Any, rows: Sequence[Pair]) -> None:
    """Give the tokenizer a padding token that ends no row.

    The score is read at the last token that is not padding. Where the stop token is the padding
    token too, that is the token before the answer's end.
    """
    ends = {ids[-1] for row in rows for ids in row.sequences}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        free = next(index for index in range(len(tokenizer)) if index not in ends)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free)


def _as_dataset(rows: Sequence[Pair]) -> Dataset:
    return Dataset.from_dict(
        {
            "chosen_ids": [row.prompt_ids + row.chosen_ids for row in rows],
            "rejected_ids": [row.prompt_ids + row.rejected_ids for row in rows],
        }
    )


def _metrics(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        **loss_metrics(points),
        **before_after(points, "accuracy"),
        **before_after(points, "margin"),
    }


def _render(
    config: TrainingConfig, tokenizer: Any, rows: Sequence[Row], stop_ids: Sequence[int], file: str
) -> list[Pair]:
    """Render pairs with all that the template writes after the answer's end, such as ChatML's line
    end: the score is read at the last token, and a server renders whole conversations."""
    pairs = [
        replace(
            pair,
            chosen_ids=_whole(tokenizer, row, row.completion, pair.prompt_ids, pair.chosen_ids),
            rejected_ids=_whole(tokenizer, row, row.rejected, pair.prompt_ids, pair.rejected_ids),
        )
        for row, pair in zip(rows, render(config, tokenizer, rows, stop_ids, file), strict=True)
    ]
    for row, pair in zip(rows, pairs, strict=True):
        if pair.num_tokens > config.max_length:
            raise DataError(
                f"{file}: line {row.line}: has {pair.num_tokens} tokens with the end of the chat "
                f"template; at most max_length={config.max_length} are trained",
                hint=f"Set training.max_length: {pair.num_tokens}, or remove the row.",
            )
    return pairs


def _whole(
    tokenizer: Any,
    row: Row,
    answer: Sequence[Message],
    prompt_ids: list[int],
    answer_ids: list[int],
) -> list[int]:
    """Return the tokens of an answer and of what the template writes after it."""
    whole = conversation_token_ids(tokenizer, [*row.prompt, *answer], row.tools)
    known = prompt_ids + answer_ids
    return whole[len(prompt_ids) :] if whole[: len(known)] == known else answer_ids


REWARD = Method(
    render=_render,
    trainer=_trainer,
    metrics=_metrics,
    check=_check,
    sequences=lambda pair: pair.sequences,
    result="a reward model, which answers no prompt: the line ends with its evaluation, or with "
    "its served scores if serving.routes has pooling or classify",
    columns=("margin", "accuracy"),
    choosable=("margin", "accuracy"),
    task_type="SEQ_CLS",
)


class _RewardTrainer(RenderedRows, RewardTrainer):  # type: ignore[misc]
    """RewardTrainer on the token ids that were checked."""
