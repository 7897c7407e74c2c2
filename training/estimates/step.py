"""The estimate of a run whose rows are known, and what `auto` means for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training.config import TrainingConfig
from training.estimates.choices import (
    choose_all,
    choose_attention,
    choose_format,
    item_bytes,
    share_of_free,
)
from training.estimates.memory import (
    TrainingMemory,
    change_that_fits,
    estimate_training,
    largest_batch,
    trained_network,
)
from training.loop.shared_rows import Sharing
from tuneline.core.errors import ArtifactError
from tuneline.core.free_memory import free_memory_bytes
from tuneline.core.progress import logger


def estimate_step(
    config: TrainingConfig,
    base: Path,
    lengths: Sequence[int],
    trained: Sequence[int] = (),
    *,
    sharing: Sharing | None = None,
    num_threads: int = 0,
) -> tuple[TrainingConfig, TrainingMemory | None]:
    """Return the configuration without `auto`, and the memory that a step is estimated to take.

    A base whose files name no sizes has no estimate; its activations are computed again.

    Args:
        lengths: Tokens of each sequence of the training rows; a preference pair has two.
        trained: Trained tokens of each row, of both sides of a pair; all tokens if not given.
        sharing: The tokens that rows of a batch share.
        num_threads: Threads that compute rows of their own; 0 for whole batches.
    """
    try:
        network = trained_network(config, base)
    except ArtifactError as error:
        logger.warning("  no estimate of the memory: %s", error)
        attention = choose_attention(config, str(choose_format(config).value))
        without = {
            "gradient_checkpointing": config.gradient_checkpointing is not False,
            attention.key: attention.value,
        }
        return config.model_copy(update=without), None
    free_bytes = share_of_free(config, free_memory_bytes())
    batch = replace(largest_batch(config, lengths, trained, sharing), num_threads=num_threads)
    choices = choose_all(config, network, batch, free_bytes)
    # The format is resolved where torch knows the device; see training.model.
    chosen = {choice.key: choice.value for choice in choices if choice.key != "dtype"}
    size = item_bytes(str(choices[0].value))
    config = config.model_copy(update=chosen)
    memory = estimate_training(config, network, batch, size)
    if memory.total > free_bytes:
        change = change_that_fits(config, network, batch, size, free_bytes)
        logger.warning(
            "  training may not fit: a step takes about %.2f GiB, and %.2f GiB are free%s",
            memory.total / 2**30, free_bytes / 2**30, f"; try: {change}" if change else "",
        )  # fmt: skip
    return config, memory
