"""The tokens whose rows of the embedding are trained, against the tokens of the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from training.config import TrainingConfig
from tuneline.core.errors import ConfigError


def require_trained_tokens(
    config: TrainingConfig, tokenizer: Any, sequences: Iterable[Sequence[int]]
) -> None:
    """Check that the training rows have each token of `trainable_token_indices`.

    The proof of training sees all rows of the embedding as one parameter. GRPO is not checked: it
    trains on tokens that the model samples.

    Raises:
        ConfigError: Tokens appear in no row.
    """
    named = config.trainable_token_indices
    if named is None or config.method.num_sampled_tokens:
        return
    lists = named.values() if isinstance(named, dict) else [named]
    missing = sorted({index for ids in lists for index in ids}.difference(*sequences))
    if missing:
        shown = ", ".join(f"{i} ({tokenizer.convert_ids_to_tokens(i)!r})" for i in missing[:5])
        raise ConfigError(
            f"training.trainable_token_indices: {len(missing)} tokens appear in no training row, "
            f"so that their rows of the embedding learn nothing: {shown}",
            hint="Remove them, or add rows with these tokens.",
        )
