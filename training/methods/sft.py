"""Supervised fine-tuning with TRL's SFTTrainer: the loss is on the answers only.

The trainer gets exactly the token ids that were checked. TRL renders nothing, so the chat template
that is trained is the template that is exported and served.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from training.config import TrainingConfig
from training.data.row import Row
from training.loop.answer_loss import add_answer_loss
from training.loop.batches import GroupedByLength
from training.loop.packing import require_rows_apart
from training.loop.ranks import num_ranks
from training.loop.row_shares import RowThreads, loss_in_shares, row_threads
from training.loop.trl_head import trl_head_fits
from training.methods import Method, loss_metrics
from training.methods.options import check_names, make_trainer, trl_config
from training.rendering.chat import IGNORED, Rendered, render_rows


def _check(config: TrainingConfig, _rows: Sequence[Row], _file: str) -> None:
    check_names(config, SFTConfig)


def _render(
    config: TrainingConfig, tokenizer: Any, rows: Sequence[Row], stop_ids: Sequence[int], file: str
) -> list[Rendered]:
    return render_rows(
        tokenizer, rows, stop_ids=stop_ids, max_length=config.max_length, file=file,
        train_on=config.train_on,
    )  # fmt: skip


def _trainer(
    config: TrainingConfig,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train_rows: Sequence[Rendered],
    heldout_rows: Sequence[Rendered],
) -> SFTTrainer:
    if config.packing:
        # The Trainer weighs a batch by its rows, and several packed rows would be one.
        arguments = {**arguments, "per_device_eval_batch_size": 1}
    args = trl_config(
        config,
        SFTConfig,
        arguments,
        max_length=config.max_length,
        completion_only_loss=True,
        packing=config.packing,
    )
    if config.packing:
        require_rows_apart(model, config.max_length)
    # Held-out rows of like length share a batch; their order does not change the mean.
    ordered = sorted(heldout_rows, key=lambda row: len(row.input_ids))
    trainer = make_trainer(
        config,
        _AnswerTrainer,
        model=model,
        args=args,
        train_dataset=_as_dataset(train_rows),
        eval_dataset=_as_dataset(ordered),
        processing_class=tokenizer,
    )
    # Every loss here is divided by the trained tokens of a whole step, whatever the model takes.
    trainer.model_accepts_loss_kwargs = trainer.loss_is_scaled_for_ga = True
    num_heldout_tokens = sum(row.num_trained_tokens for row in heldout_rows)
    trainer.heldout_tokens_per_row = num_heldout_tokens / len(trainer.eval_dataset)
    trainer.groups_by_length = config.train_sampling_strategy == "group_by_length"
    shortest = min(train_rows, key=lambda row: len(row.input_ids))
    if args.loss_type == "nll":
        trainer.has_answer_loss = add_answer_loss(
            trainer.model, shortest.input_ids, shortest.labels
        )
        trainer.uses_own_head = not trainer.has_answer_loss and not trl_head_fits(
            trainer.model, shortest.input_ids
        )
    return trainer


SFT = Method(
    render=_render,
    trainer=_trainer,
    metrics=loss_metrics,
    check=_check,
    is_answered=True,
)


class _AnswerTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose loss reads trained tokens only, in batches of like length.

    On a CPU, TRL 1.16 projects every position onto the vocabulary, padding included, and computes
    entropy and accuracy that nobody reads: together 40 % of a step of a small model.
    """

    has_answer_loss = False
    has_row_shares = False
    row_threads: RowThreads | None = None
    """The threads of a training that computes batches in shares."""
    uses_own_head = False
    """Whether the loss is computed from the model's own logits, because TRL's are others."""
    groups_by_length = True
    heldout_tokens_per_row = 1.0
    """Trained tokens of the held-out rows per row; with packing, per packed row."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs["labels"]
        if not self.model.training:
            # The Trainer takes the mean over rows. With this divisor it is the mean over all
            # trained tokens, whatever the batches are. The Trainer also takes the loss for one of
            # gradients that processes average; see below.
            num_items_in_batch = labels.shape[0] * self.heldout_tokens_per_row * num_ranks()
        own = self.has_answer_loss or self.uses_own_head
        if return_outputs or not own:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self._summed_loss(model, {**inputs, "use_cache": False})
        # The tokens are those of all processes, whose gradients are then averaged.
        return loss / num_items_in_batch * num_ranks()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if not self.has_row_shares:
            return super().train(*args, **kwargs)
        with row_threads(self.model) as self.row_threads:
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self.row_threads.given_back() if self.row_threads else nullcontext():
            return super().evaluate(*args, **kwargs)

    def _summed_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        if self.row_threads and self.model.training:
            loss = loss_in_shares(self.model, inputs, self.row_threads)
            if loss is not None:
                return loss
            # Batches of another kind, as with `padding_free`: torch computes all with its threads.
            torch.set_num_threads(self.row_threads.number)
            self.row_threads = None
        if self.has_answer_loss:
            return model(**inputs, answer_loss=True)
        labels = inputs.pop("labels")
        return torch.nn.functional.cross_entropy(
            model(**inputs).logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(),
            ignore_index=IGNORED, reduction="sum",
        )  # fmt: skip

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: nobody reads the number, and its search for parameters takes 3 ms a step."""
        del inputs
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.groups_by_length:
            return super()._get_train_sampler(train_dataset)
        rows = (self.train_dataset if train_dataset is None else train_dataset)["input_ids"]
        args = self.args
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * num_ranks()
        return GroupedByLength([len(row) for row in rows], batch_size, self.args.seed)


def _as_dataset(rows: Sequence[Rendered]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    )
