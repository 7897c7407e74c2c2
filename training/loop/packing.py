"""The self-test of packing: rows of one sequence do not see one another.

Attention keeps packed rows apart by their positions, which start at 0 with each row. A layer that
carries a state along the sequence (a short convolution, a linear attention, a state-space layer)
and an attention that reads no positions do not: one row then changes the next one's answer.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from tuneline.core.errors import ConfigError

NUM_WORDS = 64
MAX_SIZE = 2**27
"""Parameters of a network that is made only for the test: half a GiB."""
NUM_TOKENS = 8
"""Tokens of each of the two rows: longer than the window of a short convolution."""
MAX_RELATIVE_LEAK = 1e-5
"""Of the largest hidden state. A masked token has the weight 0.0, so that rows that are apart
differ by nothing at all or by the last bit of a number."""


def require_rows_apart(model: Any) -> None:
    """Check on the loaded model that rows that are packed into one sequence stay apart.

    Raises:
        ConfigError: A token of one row changes the hidden states of the next row.
    """
    leak, largest = packing_leak(model)
    if leak > MAX_RELATIVE_LEAK * largest:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        raise ConfigError(
            f"training.packing: rows of one sequence see one another in {type(base).__name__}: "
            f"other tokens in one row change the next row's hidden states by {leak:.3g}; "
            "expected 0",
            hint="Try: training.packing: false",
        )


def small_network(model: Any) -> Any | None:
    """Return a network like a model's, with random weights: a layer of each kind, and few words.

    Returns:
        None if even so it is large, or if its class cannot be made with fewer layers.
    """
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    try:
        if kinds:
            text.num_hidden_layers = 1 + max(kinds.index(kind) for kind in kinds)
            text.layer_types = kinds[: text.num_hidden_layers]
        else:
            text.num_hidden_layers = min(2, text.num_hidden_layers)
        text.vocab_size, text.pad_token_id = NUM_WORDS, None
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in type(model)(config).parameters())
        return type(model)(config) if size <= MAX_SIZE else None
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None


def packing_leak(model: Any) -> tuple[float, float]:
    """Return how far the first of two packed rows changes the hidden states of the second.

    The second element is the largest hidden state. The network runs as it does in training: one
    sequence, positions that start again with each row, no attention mask.
    """
    vocab_size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(1, vocab_size, (2, NUM_TOKENS), generator=generator)
    found = [
        _last_hidden(model, torch.cat([row, second])) for row in (first, (first + 1) % vocab_size)
    ]
    return float((found[0] - found[1]).abs().max()), float(found[0].abs().max())


def _last_hidden(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the last layer's hidden states of the second row, without dropout."""
    positions = torch.arange(NUM_TOKENS).repeat(2)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = base.base_model(
                input_ids=input_ids[None].to(model.device),
                position_ids=positions[None].to(model.device),
                use_cache=False,
            )
    finally:
        model.train(was_training)
    hidden: torch.Tensor = output.last_hidden_state[0, NUM_TOKENS:]
    return hidden.float()
