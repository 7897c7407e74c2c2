"""The self-test of packing: rows of one sequence do not see one another.

Attention keeps packed rows apart by their positions, which start at 0 with each row. A layer that
carries a state along the sequence (a short convolution, a linear attention, a state-space layer)
and an attention that reads no positions do not: one row then changes the next one's answer.

Llama 4 counts two things from the start of the sequence and not of the row: where a chunk of its
attention ends, and the temperature of its layers without positions. A row beyond the first chunk
then loses its own beginning.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from tuneline.core.errors import ConfigError

NUM_WORDS = 64
MAX_SIZE = 2**27
"""Parameters of a network that is made only for the test: half a GiB."""
MLP_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
NARROW = 16
"""Width of an MLP of a narrow network."""
BORDERS = ("sliding_window", "mamba_chunk_size", "chunk_size")
"""Tokens after which a layer forgets a token, or computes its state in a new block."""
SPREAD = 0.1
"""Of the random part of biases and norms; a fresh bias is 0 and would hide what becomes of it."""
NUM_TOKENS = 8
"""Tokens of each of the two rows: longer than the window of a short convolution."""
MAX_RELATIVE_LEAK = 1e-5
"""Of the largest hidden state. A masked token has the weight 0.0, so that rows that are apart
differ by nothing at all or by the last bit of a number."""


def require_rows_apart(model: Any, max_length: int) -> None:
    """Check on the loaded model that rows that are packed into one sequence stay apart.

    Args:
        max_length: The longest packed sequence, in tokens.

    Raises:
        ConfigError: A token of one row changes the hidden states of the next row, or the place of a
            row in the sequence changes its own.
    """
    longest = longest_sequence(model.config.get_text_config())
    if longest is not None and max_length > longest:
        raise ConfigError(
            f"training.packing: training.max_length is {max_length:,}; the attention of "
            f"{_class_name(model)} counts chunks of {longest:,} tokens from the start of the "
            "packed sequence, so that a row in two chunks loses its own beginning",
            hint=f"Try: training.max_length: {longest}, or training.packing: false",
        )
    leak, largest = packing_leak(model)
    if leak > MAX_RELATIVE_LEAK * largest:
        raise ConfigError(
            f"training.packing: rows of one sequence see one another in {_class_name(model)}: "
            f"other tokens in one row change the next row's hidden states by {leak:.3g}; "
            "expected 0",
            hint="Try: training.packing: false",
        )


def longest_sequence(config: Any) -> int | None:
    """Return the longest packed sequence whose rows are computed as on their own; None without a
    limit.

    Args:
        config: The text configuration of transformers.
    """
    limits = []
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        limits.append(config.attention_chunk_size)
    if getattr(config, "attn_temperature_tuning", False):
        limits.append(config.floor_scale)  # the position after it predicts nothing
    return min(limits, default=None)


def _class_name(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__


def small_network(model: Any, border: int | None = None) -> Any | None:
    """Return a network like a model's, with random weights: a layer of each kind, and few words.

    A network that is still large also gets narrow MLPs and few attention heads.

    Args:
        border: Length of windows of attention and of blocks of a state; None for the model's own.

    Returns:
        None if even so it is large, or if its class cannot be made so.
    """
    network = _reduced(model, border, narrow=False) or _reduced(model, border, narrow=True)
    if network is not None:
        with torch.no_grad():
            for vector in (found for found in network.parameters() if found.dim() < 2):
                vector.add_(torch.randn_like(vector), alpha=SPREAD)
    return network


def _reduced(model: Any, border: int | None, *, narrow: bool) -> Any | None:
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
        for name in BORDERS:
            if border is not None and getattr(text, name, None):
                setattr(text, name, border)
        if narrow:
            _make_narrow(text)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in type(model)(config).parameters())
        return type(model)(config) if size <= MAX_SIZE else None
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None


def _make_narrow(text: Any) -> None:
    for name in MLP_WIDTHS:
        if getattr(text, name, None):
            setattr(text, name, NARROW)
    heads, shared = text.num_attention_heads, text.num_key_value_heads
    if shared > 2 and shared % 2 == 0:
        text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        text.num_attention_heads, text.num_key_value_heads = heads // (shared // 2), 2


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
    # A network without a decoder of its own name, such as Llama 4, returns its logits.
    hidden: torch.Tensor = output[0][0, NUM_TOKENS:]
    return hidden.float()
