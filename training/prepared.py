"""Rows and model of a training, up to the point where a trainer can be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import set_seed

from training.adapters.tokens import require_trained_tokens
from training.adapters.trainable import load_trainable
from training.config import TrainingConfig
from training.data.prepare import dataset_rows
from training.data.row import Row
from training.estimates.memory import TrainingMemory, in_shares_by
from training.estimates.step import estimate_step
from training.heldout import require_heldout
from training.loop.best import require_metric
from training.loop.memory import start_measurement
from training.loop.ranks import any_rank
from training.loop.row_shares import class_fits_row_shares, fits_row_shares
from training.loop.shared_rows import (
    CLASS_DIFFERS,
    COMPUTED_AGAIN,
    MODEL_DIFFERS,
    Sharing,
    expected_sharing,
)
from training.loop.shared_start import fits_shared_starts, share_starts
from training.loop.trl_head import project_trained_positions
from training.methods import Method, find_method, require_kinds
from tuneline.core.artifact import Artifact
from tuneline.core.dataset import HELDOUT_FILE, TRAIN_FILE
from tuneline.core.progress import logger
from tuneline.models.chat import set_template
from tuneline.models.context import require_context
from tuneline.models.source import ModelSource
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.template import TemplateSettings, dataset_settings
from tuneline.models.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Prepared:
    """A loaded model with what it is trained on.

    Attributes:
        rendering: How conversations are rendered.
        template: The trained model's chat template; None if it has no use for one.
        rows: The rows of each file, as they were read.
        train_rows: The training rows, as the method renders them.
        heldout_rows: The held-out rows, as the method renders them.
        chosen: The configuration without `auto`.
        estimate: The memory that a step is estimated to take.
        memory_before: Bytes in use before the model was loaded.
        reached: The modules that are trained.
        without: The layers that `all-linear` leaves out.
        sharing: The tokens that rows of a batch share; None if they share too little.
        in_shares: Whether batches are computed in shares of rows, as far as the class tells.
    """

    method: Method
    tokenizer: Any
    rendering: TemplateSettings
    template: str | None
    stop_ids: Sequence[int]
    rows: dict[str, list[Row]]
    train_rows: Sequence[Any]
    heldout_rows: Sequence[Any]
    chosen: TrainingConfig
    estimate: TrainingMemory | None
    memory_before: int
    model: Any
    reached: Any
    without: Any
    sharing: Sharing | None
    in_shares: bool

    def trainer(self, config: TrainingConfig, arguments: dict[str, Any]) -> Any:
        """Return the method's trainer, ready to train."""
        project_trained_positions()
        trainer = self.method.trainer(
            config, self.model, self.tokenizer, arguments, self.train_rows, self.heldout_rows
        )
        trainer.saved_token_share = 0.0
        sequences = [ids for row in self.train_rows for ids in self.method.sequences(row)]
        if self.in_shares and trainer.has_answer_loss:
            trainer.has_row_shares = fits_row_shares(trainer.model, sequences)
        if self.sharing is None:
            return trainer
        if self.sharing.whole_because:
            logger.info("  %s", self.sharing)
            return trainer
        left, copy = config.method.num_sampled_tokens > 0, getattr(trainer, "ref_model", None)
        if share_starts(trainer.model, sequences, padded_left=left, copy=copy):
            trainer.saved_token_share = self.sharing.saved
            logger.info("  %s", self.sharing)
        else:
            logger.info("  %s", replace(self.sharing, whole_because=MODEL_DIFFERS))
        return trainer


def prepare_training(config: TrainingConfig, dataset: Artifact, base: ModelSource) -> Prepared:
    """Render and check every row, then load the model with what is trained on it.

    Raises:
        ConfigError: The chat template does not train a stop token or cannot be used, a target
            module does not exist, or the method does not measure the metric.
        DataError: Rows are longer than `max_length`, cannot be rendered, or are not rows that the
            method trains on; or held-out rows cannot be measured.
        ArtifactError: The base model cannot be loaded.
    """
    method = find_method(config.method)
    require_metric(config, method)
    tokenizer = load_tokenizer(base.path)
    rendering = dataset_settings(dataset)
    template: str | None = None
    stop_ids: Sequence[int] = ()
    if config.method.renders_chats:
        template = set_template(tokenizer, base.name, rendering)
        stop_ids = served_stop_ids(base.path, tokenizer, config.eos_token)
    rows = {file: dataset_rows(dataset, file) for file in (TRAIN_FILE, HELDOUT_FILE)}
    for file, found in rows.items():
        require_kinds(config.method, found, file)
    method.check(config, rows[TRAIN_FILE], TRAIN_FILE)
    method.check_models(config, base, tokenizer)
    require_heldout(config, rows[HELDOUT_FILE], HELDOUT_FILE)
    train_rows, heldout_rows = (
        method.render(config, tokenizer, found, stop_ids, file) for file, found in rows.items()
    )
    examples = [method.sequences(row) for row in train_rows]
    sequences = [ids for example in examples for ids in example]
    require_trained_tokens(config, tokenizer, sequences)
    set_seed(config.seed)
    lengths = [len(ids) for ids in sequences]
    sampled = config.method.num_sampled_tokens
    require_context(base, max(lengths, default=0), sampled)
    lengths = [length + sampled for length in lengths]
    trained = [row.num_trained_tokens or sampled for row in train_rows]
    sharing = expected_sharing(config, examples) if config.method.renders_chats else None
    if (
        sharing
        and not sharing.whole_because
        and not fits_shared_starts(base.path, max(lengths), padded_left=sampled > 0)
    ):
        sharing = replace(sharing, whole_because=CLASS_DIFFERS)
    # A long common start of rows is computed once, in a whole batch.
    whole = sharing is not None and not sharing.whole_because
    in_shares = (
        not whole and in_shares_by(config) and class_fits_row_shares(base.path, max(lengths))
    )
    num_threads = torch.get_num_threads() if in_shares else 0
    chosen, estimate = estimate_step(
        config, base.path, lengths, trained, sharing=sharing, num_threads=num_threads
    )
    # Hosts have different free memory; the processes compute the same passes.
    again = any_rank(chosen.gradient_checkpointing is True)
    chosen = chosen.model_copy(update={"gradient_checkpointing": again})
    if sharing and not sharing.whole_because and again:
        sharing = replace(sharing, whole_because=COMPUTED_AGAIN)
    memory_before = start_measurement()
    model, reached, without = load_trainable(
        config, base, chosen.attn_implementation, method.task_type
    )
    return Prepared(
        method, tokenizer, rendering, template, stop_ids, rows, train_rows, heldout_rows, chosen,
        estimate, memory_before, model, reached, without, sharing, in_shares and not again,
    )  # fmt: skip
