"""Parts that the methods which compare answers share: datasets, order of rows, reference."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from training.config import TrainingConfig
from training.config.method_options import TrlOptions
from training.data.row import Row
from training.loop.batches import GroupedByLength
from training.loop.ranks import is_first, num_ranks
from training.methods.options import check_names, unread_options
from training.rendering.pairs import Pair, render_pairs
from tuneline.core.errors import ConfigError

REFERENCE_ADAPTER = "ref"
"""TRL's name of its copy of the adapter."""
REFERENCE_FILE = "reference.pt"


def check_options(config: TrainingConfig, config_class: type[Any]) -> TrlOptions:
    """Check the options of a method that compares answers, and return them.

    Raises:
        ConfigError: An option is unknown to TRL, or two keys do not work together.
    """
    options = check_names(config, config_class)
    problems = unread_options(config, config_class)
    if config.packing:
        problems.append(
            f"training.packing: {config.method.type} compares whole answers; packed rows would see "
            "one another. Set training.packing: false"
        )
    drops_dropout = options.for_trl().get("disable_dropout", config_class.disable_dropout)
    if config.lora_dropout and drops_dropout:
        problems.append(
            f"training.lora_dropout: {config.lora_dropout:g} has no effect, because "
            f"{config.method.type} switches dropout off. Set training.lora_dropout: 0, or "
            "training.method.disable_dropout: false"
        )
    given = options.for_trl()
    compares = config.method.has_reference and given.get("beta") != 0
    if config.bias != "none" and compares and not given.get("precompute_ref_log_probs"):
        problems.append(
            f"training.bias: {config.bias} trains biases of the base, and {config.method.type} "
            "compares with the base, which would move along. Set training.bias: none"
        )
    if problems:
        raise ConfigError(problems)
    return options


def render(
    config: TrainingConfig, tokenizer: Any, rows: Sequence[Row], stop_ids: Sequence[int], file: str
) -> list[Pair]:
    """Render preference pairs; both sides are checked as single answers are."""
    return render_pairs(tokenizer, rows, stop_ids=stop_ids, max_length=config.max_length, file=file)


def by_length(rows: Sequence[Pair]) -> list[Pair]:
    """Return held-out pairs with those of like length next to each other."""
    return sorted(rows, key=lambda row: row.num_tokens)


def pairs_dataset(rows: Sequence[Pair]) -> Dataset:
    """Return pairs in the columns of TRL's collator: the token ids that were checked."""
    return Dataset.from_dict(
        {
            "prompt_ids": [row.prompt_ids for row in rows],
            "chosen_ids": [row.chosen_ids for row in rows],
            "rejected_ids": [row.rejected_ids for row in rows],
        }
    )


class RowMeans:
    """A part of a trainer: held-out figures are means over rows.

    TRL's are means over batches, of which the last may be short.
    """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not self.model.training:  # type: ignore[attr-defined]
            name = "_stored_metrics" if hasattr(self, "_stored_metrics") else "_metrics"
            self.weigh(getattr(self, name)["eval"])
        super().log(logs, start_time)  # type: ignore[misc]

    def num_measured(self) -> int:
        """Return the rows of a held-out measurement."""
        return len(self.eval_dataset)  # type: ignore[attr-defined]

    def weigh(self, figures: dict[str, list[float]]) -> None:
        """Replace the figures of the held-out batches by their means."""
        rows, size = self.num_measured(), self.args.per_device_eval_batch_size  # type: ignore[attr-defined]
        weights = [min(size, rows - start) for start in range(0, rows, size)]
        for name, values in figures.items():
            if len(values) == len(weights):
                figures[name] = [weighted_mean(values, weights)]


class RenderedRows(RowMeans):
    """A part of a trainer: rows that are rendered already, in batches of like length.

    TRL renders rows itself, drops rows without a word if their prompt fills `max_length`, and does
    not know the template that is served. Here it renders nothing.
    """

    lengths: Sequence[int] | None = None
    """Length of each training row, in tokens; None takes the rows in random order."""
    row_shares: Sequence[float] = ()
    """Weights of the losses of the batches to come in a step."""

    def get_batch_samples(
        self, batches: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """Return the batches of a step, and let each row count alike.

        A batch's loss is a mean over its rows, and the Trainer takes the mean over batches, of
        which the last of an epoch may be short.
        """
        samples, num_tokens = super().get_batch_samples(  # type: ignore[misc]
            batches, num_batches, device
        )
        rows = [_num_rows(batch) for batch in samples]
        self.row_shares = [len(rows) * number / sum(rows) for number in rows]
        return samples, num_tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **rest: Any
    ) -> Any:
        """Return TRL's loss, weighted as `get_batch_samples` says."""
        found = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=return_outputs, **rest
        )
        if not self.model.training or not self.row_shares:  # type: ignore[attr-defined]
            return found
        share, *self.row_shares = self.row_shares
        return (found[0] * share, found[1]) if return_outputs else found * share

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.lengths is None:
            sampler: Sampler[int] = super()._get_train_sampler(train_dataset)  # type: ignore[misc]
            return sampler
        args = self.args  # type: ignore[attr-defined]
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * num_ranks()
        return GroupedByLength(self.lengths, batch_size, args.seed)


def _num_rows(batch: dict[str, Any]) -> int:
    """Return the first dimension of a batch, which is the rows, or twice the rows."""
    tensors = (value for value in batch.values() if isinstance(value, torch.Tensor))
    return len(next(tensors))


def weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """Return the mean of values that stand for several rows each."""
    pairs = zip(values, weights, strict=True)
    return sum(value * weight for value, weight in pairs) / sum(weights)


class MovingReference:
    """A part of a trainer whose reference may follow the model (`sync_ref_model`): a run that
    continues has the reference that it had."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        if self.args.sync_ref_model and is_first():  # type: ignore[attr-defined]
            folder = Path(self._get_output_dir(trial=trial))  # type: ignore[attr-defined]
            step = self.state.global_step  # type: ignore[attr-defined]
            state = self.ref_model.state_dict()  # type: ignore[attr-defined]
            torch.save(state, folder / f"checkpoint-{step}" / REFERENCE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None and self.args.sync_ref_model:  # type: ignore[attr-defined]
            state = torch.load(Path(checkpoint) / REFERENCE_FILE, weights_only=True)
            self.ref_model.load_state_dict(state)  # type: ignore[attr-defined]


def pair_lengths(config: TrainingConfig, rows: Sequence[Pair]) -> list[int] | None:
    """Return what `RenderedRows.lengths` is for pairs."""
    grouped = config.train_sampling_strategy == "group_by_length"
    return [row.num_tokens for row in rows] if grouped else None


def reference_model(model: Any) -> Any:
    """Return the model to compare with, for a model that is trained whole; None with an adapter.

    With an adapter, TRL compares with the base.
    """
    return None if hasattr(model, "peft_config") else copy.deepcopy(model)


def drop_reference_adapter(model: Any) -> None:
    """Delete TRL's copy of the adapter if a fresh adapter changes nothing.

    TRL copies every adapter that it is given as the reference, which doubles the adapter's memory
    and writes a folder `ref/` with each save. A fresh LoRA adapter has B = 0, so that the base
    without an adapter, which TRL takes if there is no copy, is the same reference.
    """
    if REFERENCE_ADAPTER not in getattr(model, "peft_config", {}):
        return
    marks = (f"lora_B.{REFERENCE_ADAPTER}.", f"lora_embedding_B.{REFERENCE_ADAPTER}")
    factors = [p for name, p in model.named_parameters() if any(mark in name for mark in marks)]
    if factors and not any(bool(factor.any()) for factor in factors):
        model.delete_adapter(REFERENCE_ADAPTER)
