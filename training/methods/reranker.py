"""A reranker: a score for a query and a passage that are read together (a cross-encoder).

With `loss: softmax`, the loss of a passage that answers the query is its cross-entropy among itself
and the passages of the row that do not (Nogueira et al., 2020, and the localized contrastive loss
of Gao et al., 2021). With `loss: bce`, each passage has the binary cross-entropy of its score. The
loss of a step is the mean over its answers, or over its passages, whatever its batches are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from training.config import TrainingConfig
from training.config.method import RerankerConfig
from training.data.row import Row
from training.loop.batches import GroupedByLength
from training.methods import Method, before_after, loss_metrics
from tuneline.core.errors import ArtifactError, ConfigError, DataError
from tuneline.models.pairs import Pair, pair_reader
from tuneline.models.source import ModelSource

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Candidates:
    """The passages of a query, each with the query as token ids; those that answer it first."""

    pairs: list[Pair]
    num_positives: int

    @property
    def sequences(self) -> list[list[int]]:
        return [pair.input_ids for pair in self.pairs]

    @property
    def num_trained_tokens(self) -> int:
        return sum(map(len, self.sequences))


def options_of(config: TrainingConfig) -> RerankerConfig:
    """Return the options of the method."""
    assert isinstance(config.method, RerankerConfig)  # noqa: S101 (for the type checker)
    return config.method


def _check(config: TrainingConfig, rows: Sequence[Row], file: str) -> None:
    problems = []
    if config.packing:
        problems.append(
            "training.packing: a reranker has one score for each passage; packed passages would "
            "share one. Set training.packing: false"
        )
    if config.router_aux_loss_coef:
        problems.append(
            "training.router_aux_loss_coef: a reranker has no router's loss. Set it to 0"
        )
    if problems:
        raise ConfigError(problems)
    if options_of(config).loss == "bce":
        sides = list(zip(*(row.passages for row in rows), strict=True))
        if not all(any(passages for passages in side) for side in sides):
            raise DataError(
                f"{file}: no row has a passage that does not answer its query; expected negatives",
                hint="Give rows with negatives: passages that a search finds and that are wrong.",
            )
        return
    _require_both(rows, file)


def _require_both(rows: Sequence[Row], file: str) -> None:
    """Check that a softmax has two passages to compare in every row.

    Raises:
        DataError: A row has one side only.
    """
    one_sided = [row for row in rows if not all(row.passages)]
    if one_sided:
        raise DataError(
            f"{file}: {len(one_sided):,} of {len(rows):,} rows have no negative passage, the first "
            f"on line {one_sided[0].line}; training.method.loss softmax compares each answer with "
            "the negatives of its row",
            hint="Give rows with negatives: passages that a search finds and that are wrong. Or "
            "set training.method.loss: bce, which takes such rows too.",
        )


def _check_heldout(rows: Sequence[Row], file: str) -> None:
    """Check that a query has a passage of each side; rows of one query count together."""
    sides: dict[str, list[int]] = {}
    for row in rows:
        found = sides.setdefault(row.query, [0, 0])
        for side, passages in enumerate(row.passages):
            found[side] += len(passages)
    if not any(all(found) for found in sides.values()):
        raise DataError(
            f"{file}: no query has both a passage that answers it and one that does not; expected "
            "passages to rank",
            hint="Try: data.heldout_path with rows that have negatives.",
        )


def _check_models(config: TrainingConfig, base: ModelSource, _tokenizer: Any) -> None:
    """Check that the base's family has a score, and a head that the way of training keeps whole."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    settings = AutoConfig.from_pretrained(
        base.path, num_labels=1, trust_remote_code=False, local_files_only=True
    )
    try:
        with torch.device("meta"):
            network = AutoModelForSequenceClassification.from_config(settings)
    except ValueError:
        raise ArtifactError(
            f"{base.path}: transformers has no ForSequenceClassification of "
            f"{settings.model_type}; expected a family with scores"
        ) from None
    if config.finetuning_type == "lora" and not hasattr(network, "score"):
        raise ConfigError(
            f"training.finetuning_type: lora trains the layer `score`, and {base.name} "
            f"({settings.model_type}) has a head of several layers, which an adapter would lose",
            hint="Try: --set training.finetuning_type=full",
        )


def _render(
    config: TrainingConfig, tokenizer: Any, rows: Sequence[Row], _stop_ids: Sequence[int], file: str
) -> list[Candidates]:
    read = pair_reader(Path(tokenizer.name_or_path), tokenizer)
    rendered = []
    too_long: dict[int, int] = {}
    for row in rows:
        positives, negatives = row.passages
        pairs = [read(row.query, passage) for passage in (*positives, *negatives)]
        longest = max(len(pair.input_ids) for pair in pairs)
        if longest > config.max_length:
            too_long[row.line] = longest
        rendered.append(Candidates(pairs, len(positives)))
    if too_long:
        line, longest = max(too_long.items(), key=lambda item: item[1])
        raise DataError(
            f"{file}: {len(too_long)} of {len(rows)} rows have a query and passage longer than "
            f"max_length={config.max_length} tokens together; the longest, line {line}, has "
            f"{longest}",
            hint=f"Set training.max_length: {longest}, or split the passages.",
        )
    return rendered


def free_pad_id(tokenizer: Any, sequences: Iterable[list[int]]) -> int:
    """Return a padding token that ends no pair: a decoder's score is read at the last other one."""
    ends = {ids[-1] for ids in sequences}
    own = tokenizer.pad_token_id
    if own is not None and own not in ends:
        return int(own)
    return next(index for index in range(len(tokenizer)) if index not in ends)


def padded(pairs: Sequence[Pair], pad_id: int) -> Batch:
    """Return the inputs of a network, of shape (pairs, tokens), padded on the right."""
    longest = max(len(pair.input_ids) for pair in pairs)

    def filled(values: Sequence[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([one + [fill] * (longest - len(one)) for one in values])

    ids = [pair.input_ids for pair in pairs]
    found = {
        "input_ids": filled(ids, pad_id),
        "attention_mask": filled([[1] * len(one) for one in ids], 0),
    }
    types = [pair.token_types for pair in pairs if pair.token_types is not None]
    return {**found, "token_type_ids": filled(types, 0)} if types else found


def collate(rows: Sequence[Candidates], *, pad_id: int, loss: str) -> Batch:
    """Return a batch of rows; `labels` has an entry for each part of the loss.

    For softmax that is the place of each passage that answers its query, and `others` says which
    passages each is compared with, of shape (answers, passages). For bce it is 1 or 0 for each
    passage.
    """
    batch = padded([pair for row in rows for pair in row.pairs], pad_id)
    if loss == "bce":
        labels = [float(at < row.num_positives) for row in rows for at in range(len(row.pairs))]
        return {**batch, "labels": torch.tensor(labels)}
    places, others, first = [], [], 0
    for row in rows:
        end = first + len(row.pairs)
        for place in range(first, first + row.num_positives):
            mask = torch.zeros(len(batch["input_ids"]), dtype=torch.bool)
            mask[first + row.num_positives : end] = True
            mask[place] = True
            places.append(place)
            others.append(mask)
        first = end
    return {**batch, "labels": torch.tensor(places), "others": torch.stack(others)}


def rank_loss(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
    """Return the sum of the losses of a batch in nats, and how many of its parts are right.

    An answer is right if its score is the highest; a label, if the score has its sign.

    Args:
        logits: A score for each passage of the batch.
    """
    labels = batch["labels"]
    if "others" not in batch:
        loss = binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        return loss, int(((logits > 0) == (labels > 0.5)).sum())
    compared = logits[None, :].masked_fill(~batch["others"], -torch.inf)
    loss = cross_entropy(compared, labels, reduction="sum")
    return loss, int((compared.argmax(1) == labels).sum())


def _trainer(
    config: TrainingConfig,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train_rows: Sequence[Candidates],
    heldout_rows: Sequence[Candidates],
) -> Trainer:
    pad_id = free_pad_id(
        tokenizer, [ids for row in (*train_rows, *heldout_rows) for ids in row.sequences]
    )
    model.config.get_text_config().pad_token_id = pad_id
    args = TrainingArguments(
        **arguments | {"remove_unused_columns": False},
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    loss = options_of(config).loss
    trainer = _RerankerTrainer(
        model=model,
        args=args,
        train_dataset=list(train_rows),
        eval_dataset=list(heldout_rows),
        processing_class=tokenizer,
        data_collator=functools.partial(collate, pad_id=pad_id, loss=loss),
    )
    # The Trainer counts the labels of a step; they are not those of next tokens.
    trainer.model_accepts_loss_kwargs, trainer._loss_shifts_labels = True, False
    if config.train_sampling_strategy == "group_by_length":
        trainer.lengths = [max(map(len, row.sequences)) for row in train_rows]
    return trainer


def _metrics(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {**loss_metrics(points), **before_after(points, "accuracy")}


RERANKER = Method(
    render=_render,
    trainer=_trainer,
    metrics=_metrics,
    check=_check,
    check_models=_check_models,
    check_heldout=_check_heldout,
    sequences=lambda row: row.sequences,
    result="a reranker, which answers no prompt: the line ends with its evaluation, or with its "
    "served scores if serving.routes has score",
    columns=("accuracy",),
    choosable=("accuracy",),
    task_type="SEQ_CLS",
)


class _RerankerTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss compares the passages of each query."""

    lengths: Sequence[int] | None = None
    """Length of each training row; None takes the rows in random order."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counted: dict[bool, list[tuple[float, int, int]]] = {True: [], False: []}
        """Sum of losses, right parts and parts of each batch of training, and of held-out rows."""

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the share of a batch in the mean loss of its step."""
        network = {k: v for k, v in inputs.items() if k not in ("labels", "others")}
        logits = model(**network).logits[:, 0].float()
        loss, right = rank_loss(logits, inputs)
        number = len(inputs["labels"])
        self.counted[model.training].append((float(loss.detach()), right, number))
        loss = loss / (number if num_items_in_batch is None else num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Batch, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None, None]:
        """Return the loss of a held-out batch."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach().float(), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        """Return the means over all parts of held-out rows; the Trainer's are over batches."""
        self.counted[False] = []
        found = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **options)
        losses, right, parts = (sum(one) for one in zip(*self.counted[False], strict=True))
        found.metrics[f"{metric_key_prefix}_loss"] = losses / parts
        found.metrics[f"{metric_key_prefix}_accuracy"] = right / parts
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the share of parts that are right, next to the loss of training."""
        if "loss" in logs and self.counted[True]:
            _, right, parts = (sum(one) for one in zip(*self.counted[True], strict=True))
            logs = {**logs, "accuracy": right / parts}
            self.counted[True] = []
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.lengths is None:
            sampler: Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return sampler
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return GroupedByLength(self.lengths, batch_size, self.args.seed)
