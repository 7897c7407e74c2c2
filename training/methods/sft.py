"""Supervised fine-tuning with TRL's SFTTrainer: the loss is on the answers only.

The trainer gets exactly the token ids that were checked. TRL renders nothing, so the chat template
that is trained is the template that is exported and served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from training.config import TrainingConfig
from training.data.row import Row
from training.loop.answer_loss import add_answer_loss
from training.loop.batches import GroupedByLength
from training.loop.packing import require_rows_apart
from training.loop.ranks import num_ranks
from training.methods import Method, loss_metrics
from training.rendering.chat import Rendered, render_rows


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
    args = SFTConfig(
        **arguments,
        max_length=config.max_length,
        completion_only_loss=True,
        packing=config.packing,
        router_aux_loss_coef=config.router_aux_loss_coef,
    )
    if config.packing:
        require_rows_apart(model)
    # Held-out rows of like length share a batch; their order does not change the mean.
    ordered = sorted(heldout_rows, key=lambda row: len(row.input_ids))
    trainer = _AnswerTrainer(
        model=model,
        args=args,
        train_dataset=_as_dataset(train_rows),
        eval_dataset=_as_dataset(ordered),
        processing_class=tokenizer,
    )
    trainer.groups_by_length = config.train_sampling_strategy == "group_by_length"
    shortest = min(train_rows, key=lambda row: len(row.input_ids))
    trainer.has_answer_loss = add_answer_loss(trainer.model, shortest.input_ids, shortest.labels)
    return trainer


SFT = Method(
    render=_render,
    trainer=_trainer,
    metrics=loss_metrics,
    kinds=("answer", "text"),
    is_answered=True,
)


class _AnswerTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose loss reads trained tokens only, in batches of like length.

    On a CPU, TRL 1.16 projects every position onto the vocabulary, padding included, and computes
    entropy and accuracy that nobody reads: together 40 % of a step of a small model.
    """

    has_answer_loss = False
    groups_by_length = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs["labels"]
        if not self.model.training:
            # The Trainer takes the loss for one of gradients that processes average; see below.
            num_items_in_batch = self._heldout_divisor(labels) * num_ranks()
        if return_outputs or not self.has_answer_loss:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = {**inputs, "use_cache": False}
        # The tokens are those of all processes, whose gradients are then averaged.
        return model(**inputs, answer_loss=True) / num_items_in_batch * num_ranks()

    def _heldout_divisor(self, labels: Any) -> Any:
        """Return what to divide a batch's summed loss by, so that the mean over rows, which the
        Trainer takes, is the mean over all trained tokens whatever the batches are."""
        if self.padding_free:  # a packed batch is one row: the mean over batches is all there is
            return (labels[:, 1:] >= 0).sum()
        rows = self.eval_dataset["labels"]
        return labels.shape[0] * sum(sum(label >= 0 for label in row) for row in rows) / len(rows)

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
