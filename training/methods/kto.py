"""Kahneman-Tversky optimization with TRL's KTOTrainer (Ethayarajh et al., 2024).

Every answer is good or bad by itself. The loss compares its log-ratio against the base with the
mean log-ratio of mismatched prompts and answers of the same batch, so a batch has two rows or more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch.utils.data import Sampler
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from training.config import TrainingConfig
from training.data.row import Row
from training.loop.batches import GroupedByLength
from training.loop.trl_head import require_trl_head
from training.methods import Method, before_after, loss_metrics
from training.methods.options import make_trainer, trl_config
from training.methods.preferences import (
    MovingReference,
    RenderedRows,
    check_options,
    drop_reference_adapter,
    reference_model,
    weighted_mean,
)
from training.rendering.chat import render_rows
from tuneline.core.errors import ConfigError, DataError


@dataclass(frozen=True)
class _Labelled:
    """One answer with its label; the answer ends with a stop token."""

    prompt_ids: list[int]
    completion_ids: list[int]
    label: bool

    @property
    def num_trained_tokens(self) -> int:
        return len(self.completion_ids)


def _check(config: TrainingConfig, rows: Sequence[Row], file: str) -> None:
    options = check_options(config, KTOConfig).model_dump()
    uses_mismatched = options["loss_type"] == "kto"
    if uses_mismatched and config.per_device_train_batch_size < 2:
        raise ConfigError(
            "training.per_device_train_batch_size: 1 is too small for kto, which compares an "
            "answer with the other answers of its batch",
            hint="Set training.per_device_train_batch_size: 2 or more, or "
            "training.method.loss_type: apo_zero_unpaired.",
        )
    if uses_mismatched and options.get("precompute_ref_log_probs"):
        raise ConfigError(
            "training.method.precompute_ref_log_probs: batches of kto are drawn anew in each "
            "epoch, and so are the answers that it compares with",
            hint="Remove the option, or set training.method.loss_type: apo_zero_unpaired.",
        )
    if len(rows) < 2:
        raise DataError(
            f"{file}: has {len(rows)} row; kto compares the answers of a batch of two or more",
            hint="Add rows.",
        )
    num_good = sum(row.label is True for row in rows)
    if num_good in (0, len(rows)):
        missing = "false" if num_good else "true"
        raise DataError(
            f"{file}: no row of {len(rows):,} has the label {missing}; kto learns from good and "
            "bad answers together",
            hint="Add rows with the other label, or train on good answers only: remove the label "
            "and set training.method: {type: sft}.",
        )


def _check_heldout(rows: Sequence[Row], file: str) -> None:
    labels = {row.label for row in rows}
    if len(labels) == 1:
        label = str(labels.pop()).lower()
        raise DataError(
            f"{file}: all {len(rows):,} held-out rows have the label {label}; expected both "
            "labels, since kto compares good answers with bad ones",
            hint="Try: data.stratify_by: label, which holds out rows of both labels, or a larger "
            "data.heldout_fraction or evaluation.num_rows.",
        )


def _render(
    config: TrainingConfig, tokenizer: Any, rows: Sequence[Row], stop_ids: Sequence[int], file: str
) -> list[_Labelled]:
    rendered = render_rows(
        tokenizer, rows, stop_ids=stop_ids, max_length=config.max_length, file=file,
        train_on="last_turn",
    )  # fmt: skip
    return [
        _Labelled(
            found.input_ids[: found.num_prompt_tokens],
            found.input_ids[found.num_prompt_tokens :],
            bool(row.label),
        )
        for row, found in zip(rows, rendered, strict=True)
    ]


def _trainer(
    config: TrainingConfig,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train_rows: Sequence[_Labelled],
    heldout_rows: Sequence[_Labelled],
) -> KTOTrainer:
    batch_size = config.per_device_train_batch_size
    # The last held-out batch must not have one row.
    fitting = (size for size in itertools.count(batch_size) if len(heldout_rows) % size != 1)
    args = trl_config(
        config,
        KTOConfig,
        {**arguments, "per_device_eval_batch_size": next(fitting)},
        max_length=config.max_length,
        train_sampling_strategy="sequential",  # which TRL asks for; `_BatchesOfTwo` has the order
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    collator = _Collator(
        pad_token_id=tokenizer.pad_token_id,
        max_length=config.max_length,
        pad_to_multiple_of=args.pad_to_multiple_of,
    )
    collator.with_mismatched = args.loss_type == "kto"
    trainer = make_trainer(
        config,
        _KtoTrainer,
        model=model,
        ref_model=reference_model(model),
        args=args,
        data_collator=collator,
        train_dataset=_as_dataset(train_rows),
        eval_dataset=_as_dataset(sorted(heldout_rows, key=_num_tokens)),
        processing_class=tokenizer,
    )
    grouped = config.train_sampling_strategy == "group_by_length"
    trainer.lengths = [_num_tokens(row) if grouped else 0 for row in train_rows]
    drop_reference_adapter(trainer.model)
    require_trl_head(trainer.model, "kto", train_rows[0].prompt_ids + train_rows[0].completion_ids)
    return trainer


def _num_tokens(row: _Labelled) -> int:
    return len(row.prompt_ids) + len(row.completion_ids)


def _as_dataset(rows: Sequence[_Labelled]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "label": [row.label for row in rows],
        }
    )


def _metrics(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {**loss_metrics(points), **before_after(points, "rewards/margins", "margin")}


KTO = Method(
    render=_render,
    trainer=_trainer,
    metrics=_metrics,
    check=_check,
    check_heldout=_check_heldout,
    sequences=lambda row: [row.prompt_ids + row.completion_ids],
    columns=("rewards/margins", "kl"),
    choosable=("rewards/margins",),
)


class _Collator(DataCollatorForUnpairedPreference):  # type: ignore[misc]
    """Pairs each prompt with the answer of the batch's previous row, for the KL term.

    TRL pairs rows once, in the order of the file, which fixes the batches of every epoch.
    """

    with_mismatched = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        if self.with_mismatched:
            answers = [example["completion_ids"] for example in examples]
            examples = [
                {**example, "KL_completion_ids": answers[index - 1]}
                for index, example in enumerate(examples)
            ]
        batch: dict[str, Any] = super().torch_call(examples)
        return batch


class _BatchesOfTwo(GroupedByLength):
    """Batches of like length; a row that would be a batch of its own gets a second one."""

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, rows_per_batch: int
    ) -> None:
        super().__init__(lengths, batch_size, seed)
        self.has_single = len(lengths) % rows_per_batch == 1

    def __len__(self) -> int:
        return super().__len__() + self.has_single

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        yield from order
        if self.has_single:
            yield order[0]


class _KtoTrainer(RenderedRows, MovingReference, KTOTrainer):  # type: ignore[misc]
    """KTOTrainer on the token ids that were checked."""

    def weigh(self, figures: dict[str, list[float]]) -> None:
        """Replace the held-out figures by their means, each over the rows of its label.

        The margin is that of the means: TRL has none if no batch has both labels.
        """
        labels, size = list(self.eval_dataset["label"]), self.args.per_device_eval_batch_size
        batches = [labels[start : start + size] for start in range(0, len(labels), size)]
        for side, label in (("chosen", True), ("rejected", False)):
            counts = [sum(found is label for found in batch) for batch in batches]
            if values := figures.get(f"rewards/{side}"):
                figures[f"rewards/{side}"] = [weighted_mean(values, [n for n in counts if n])]
        figures.pop("rewards/margins", None)
        super().weigh(figures)
        good, bad = (figures.get(f"rewards/{side}") for side in ("chosen", "rejected"))
        if good and bad:
            figures["rewards/margins"] = [good[0] - bad[0]]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:  # noqa: ARG002
        args = self.args
        batch_size = args.train_batch_size * args.gradient_accumulation_steps
        return _BatchesOfTwo(self.lengths or [], batch_size, args.seed, args.train_batch_size)
