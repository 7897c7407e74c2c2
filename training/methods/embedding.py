"""An embedding model: a query's vector comes near those of the passages that answer it.

The loss of a query and a passage that answers it is the cross-entropy of the passage among all
passages of the step, with `scale` times the cosine as logits (InfoNCE, van den Oord et al., 2018,
with the negatives of the batch, Henderson et al., 2017). Passages that are known to answer the
query too are left out.

A step may have several batches, and each query is compared with the passages of all: the vectors
are computed without gradients first, then the loss, then each batch again with the gradient of its
vectors (Gao et al., 2021). A step takes the memory of one batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from training.config import TrainingConfig
from training.config.method import EmbeddingConfig
from training.data.row import Row
from training.loop.batches import GroupedByLength
from training.methods import Method, before_after, loss_metrics
from training.methods.contrast import Batch, Known, Texts, collate, contrast, number_texts
from tuneline.core.errors import ArtifactError, ConfigError, DataError
from tuneline.models.source import ModelSource
from tuneline.models.vectors import Pool, Recipe, load_dense, pooled, read_recipe


def options_of(config: TrainingConfig) -> EmbeddingConfig:
    """Return the options of the method."""
    assert isinstance(config.method, EmbeddingConfig)  # noqa: S101 (for the type checker)
    return config.method


def _check(config: TrainingConfig, rows: Sequence[Row], file: str) -> None:
    problems = []
    if config.packing:
        problems.append(
            "training.packing: an embedding model has one vector for each text; packed texts would "
            "share one. Set training.packing: false"
        )
    if config.router_aux_loss_coef:
        problems.append(
            "training.router_aux_loss_coef: an embedding model has no router's loss. Set it to 0"
        )
    at_once = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if at_once == 1 and not any(row.passages[1] for row in rows):
        problems.append(
            "training.per_device_train_batch_size: a step of one row without negatives compares "
            "its passage with no other. Set training.per_device_train_batch_size: 8, or more"
        )
    if problems:
        raise ConfigError(problems)
    if len({passage for row in rows for side in row.passages for passage in side}) < 2:
        raise DataError(
            f"{file}: all rows have one passage; expected passages to compare",
            hint="Give rows with other passages, or negatives.",
        )


def _check_models(config: TrainingConfig, base: ModelSource, _tokenizer: Any) -> None:
    try:
        read_recipe(base.path, pooling=options_of(config).pooling)
    except ArtifactError as error:
        raise ArtifactError(
            error.message,
            hint="Try: --set training.method.pooling=mean, if the page of the base model does not "
            "name another pooling.",
        ) from None


def _render(
    config: TrainingConfig, tokenizer: Any, rows: Sequence[Row], _stop_ids: Sequence[int], file: str
) -> list[Texts]:
    folder, options = Path(tokenizer.name_or_path), options_of(config)
    prompts = options.prompts(folder)
    recipe = read_recipe(folder, pooling=options.pooling)
    limit, named = config.max_length, f"max_length={config.max_length} tokens"
    if recipe.max_tokens is not None and recipe.max_tokens < limit:
        # A server takes no longer text, and sentence-transformers cuts it.
        limit, named = recipe.max_tokens, f"the base's max_seq_length={recipe.max_tokens} tokens"

    def ids(kind: str, text: str) -> list[int]:
        text = prompts[kind] + text
        found: list[int] = tokenizer(text.lower() if recipe.lowers_case else text)["input_ids"]
        return found

    rendered = []
    too_long: dict[int, int] = {}
    for row in rows:
        positives, negatives = ([ids("document", one) for one in side] for side in row.passages)
        texts = Texts(ids("query", row.query), positives, negatives)
        longest = max(map(len, texts.sequences))
        if longest > limit:
            too_long[row.line] = longest
        rendered.append(texts)
    if too_long:
        line, longest = max(too_long.items(), key=lambda item: item[1])
        raise DataError(
            f"{file}: {len(too_long)} of {len(rows)} rows have a text longer than {named}; the "
            f"longest, line {line}, has {longest}",
            hint=(
                f"Set training.max_length: {longest}, or split the passages"
                if limit == config.max_length
                else "Split the passages"
            )
            + ": a text has one vector, whatever its length.",
        )
    return rendered


def _trainer(
    config: TrainingConfig,
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    train_rows: Sequence[Texts],
    heldout_rows: Sequence[Texts],
) -> Trainer:
    options, folder = options_of(config), Path(tokenizer.name_or_path)
    recipe = read_recipe(folder, pooling=options.pooling)
    at_once = config.per_device_train_batch_size * config.gradient_accumulation_steps
    args = TrainingArguments(
        **arguments | {"per_device_eval_batch_size": at_once, "remove_unused_columns": False},
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    numbers, known = number_texts([*train_rows, *heldout_rows])
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    trainer = _EmbeddingTrainer(
        model=model,
        args=args,
        train_dataset=list(train_rows),
        eval_dataset=list(heldout_rows),
        processing_class=tokenizer,
        data_collator=functools.partial(collate, numbers=numbers, pad_id=pad_id),
    )
    # The loss of a step is the mean over its pairs, whatever its batches are.
    trainer.model_accepts_loss_kwargs = trainer.loss_is_scaled_for_ga = True
    trainer.recipe, trainer.dense = recipe, load_dense(folder, recipe)
    trainer.scale, trainer.known = options.scale, known
    if config.train_sampling_strategy == "group_by_length":
        trainer.lengths = [max(map(len, row.sequences)) for row in train_rows]
    return trainer


def _metrics(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {**loss_metrics(points), **before_after(points, "accuracy")}


EMBEDDING = Method(
    render=_render,
    trainer=_trainer,
    metrics=_metrics,
    check=_check,
    check_models=_check_models,
    sequences=lambda texts: texts.sequences,
    result="an embedding model, which answers no prompt: the line ends with its evaluation, or "
    "with its served vectors if serving.routes has embeddings",
    columns=("accuracy",),
    choosable=("accuracy",),
    task_type="FEATURE_EXTRACTION",
)


class _EmbeddingTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss compares the queries of a step with all of its passages."""

    recipe: Recipe
    dense: Pool
    scale: float
    known: Known
    lengths: Sequence[int] | None = None
    """Length of each training row; None takes the rows in random order."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.batches: Sequence[Batch] = []
        """The batches of a step whose loss is not known yet."""
        self.to_come: list[tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]] = []
        """Of each batch to come in a step: the gradient of its vectors, its share of the loss, and
        the state of the random numbers."""
        self.counted: list[tuple[int, int]] = []
        """Pairs whose passage is the nearest, and pairs, since the last log."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:
        """Return the batches of a step, and keep them for its loss.

        The Trainer restores the random numbers of a run that continues after this call.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.batches = batches if len(batches) > 1 else []
        return batches, None

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch; in a step of several, its share and the whole gradient."""
        del num_items_in_batch
        if model.training and self.batches:
            self.to_come, self.batches = self._compared(self.batches), []
        if model.training and self.to_come:
            gradient, share, random_state = self.to_come.pop(0)
            with torch.random.fork_rng(_devices()):
                _set_random_state(random_state)
                vectors = torch.cat(self._vectors(model, inputs))
            through = (vectors * gradient).sum()
            loss = through - through.detach() + share
        else:
            loss, right = self._contrast([inputs], [self._vectors(model, inputs)])
            self.counted.append((right, len(inputs["target"])))
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Batch, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None, None]:
        """Return the loss of a held-out batch, computed in batches of the training's size."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach().float(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the share of pairs whose passage is the nearest, next to the loss."""
        name = next((f"{part}accuracy" for part in ("eval_", "") if f"{part}loss" in logs), None)
        if name and self.counted:
            right, pairs = (sum(one) for one in zip(*self.counted, strict=True))
            logs[name] = right / pairs  # the caller's own: it chooses the best checkpoint by them
            self.counted = []
        super().log(logs, start_time)

    def _compared(
        self, batches: Sequence[Batch]
    ) -> list[tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]]:
        """Return what `to_come` holds for the batches of a step."""
        states, found = [], []
        for batch in batches:
            states.append(_random_state())
            with torch.no_grad(), self.compute_loss_context_manager():
                found.append(self._vectors(self.model, batch))
        leaves = [tuple(one.detach().requires_grad_() for one in pair) for pair in found]
        loss, right = self._contrast(batches, leaves)
        loss.backward()
        pairs = [len(batch["target"]) for batch in batches]
        self.counted.append((right, sum(pairs)))
        return [
            (
                torch.cat([one.grad for one in leaf]),
                loss.detach() * number / sum(pairs),
                state,
            )
            for leaf, number, state in zip(leaves, pairs, states, strict=True)
        ]

    def _vectors(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors of a batch's queries and passages, in float32."""
        found = []
        for name in ("query", "passage"):
            ids, mask = batch[f"{name}_ids"], batch[f"{name}_mask"]
            size = len(ids) if model.training else max(1, self.args.train_batch_size)
            parts = [
                pooled(
                    model(input_ids=some, attention_mask=seen).last_hidden_state.float(),
                    seen, self.recipe, self.dense,
                )
                for some, seen in zip(ids.split(size), mask.split(size), strict=True)
            ]  # fmt: skip
            found.append(torch.cat(parts))
        return found[0], found[1]

    def _contrast(
        self, batches: Sequence[Batch], vectors: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, int]:
        """Return the loss of several batches together, and the pairs that are right."""
        queries, passages = (torch.cat(one) for one in zip(*vectors, strict=True))
        asked, target = [], []
        first_query = first_passage = 0
        for batch in batches:
            asked.append(batch["asked"] + first_query)
            target.append(batch["target"] + first_passage)
            first_query += len(batch["query_ids"])
            first_passage += len(batch["passage_ids"])
        pairs, places = torch.cat(asked), torch.cat(target)
        query_numbers = torch.cat([batch["query_number"] for batch in batches])[pairs].tolist()
        numbers = torch.cat([batch["passage_number"] for batch in batches]).cpu()
        left_out = torch.stack([torch.isin(numbers, self.known[one]) for one in query_numbers])
        left_out = left_out.to(places.device)
        left_out[torch.arange(len(places), device=places.device), places] = False
        return contrast(queries, passages, pairs, places, left_out, self.scale)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.lengths is None:
            sampler: Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return sampler
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return GroupedByLength(self.lengths, batch_size, self.args.seed)


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def _random_state() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(one) for one in _devices())]


def _set_random_state(states: Sequence[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(_devices(), states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)
