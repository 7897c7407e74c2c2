"""Rows that are padded on the left, as TRL pads prompts that a model answers itself.

A model whose positions are learned (GPT-2, GPT-Neo, StarCoder) counts the padding too unless it is
given positions. Generation gives them; TRL 1.16 does not when it computes the probabilities of the
answers, so that it would train on others than those by which the answers were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from training.loop.trl_head import MAX_DIFFERENCE, MAX_DIFFERENCE_16, NUM_TOKENS
from tuneline.core.errors import ConfigError

NUM_PADDED = 7


def place_padded_rows(model: Any, method: str, input_ids: Sequence[int]) -> None:
    """Let a model give a row that is padded on the left the probabilities that it has by itself.

    A model that does so already stays as it is; another one gets its positions from the mask.

    Args:
        model: A causal model, with or without an adapter.
        method: The training method, for the message.
        input_ids: A row of the training.

    Raises:
        ConfigError: The model reads its padding also with positions.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if _is_alike(model, input_ids):
        return
    hook = base.base_model.register_forward_pre_hook(_with_positions, with_kwargs=True)
    try:
        fits = _is_alike(model, input_ids)
    except TypeError:  # it takes no positions
        fits = False
    if not fits:
        hook.remove()
        raise ConfigError(
            f"training.method: {method} on a {type(base).__name__}: a row that is padded on the "
            "left has other probabilities than by itself, and TRL pads prompts so",
            hint="Try: training.method: {type: sft}, or dpo for pairs, which pad on the right.",
        )


def _is_alike(model: Any, input_ids: Sequence[int]) -> bool:
    """Return whether a row has the same probabilities with padding on the left."""
    row = list(input_ids[:NUM_TOKENS])
    ids = torch.tensor([row[:1] * NUM_PADDED + row], device=model.device)
    mask = torch.ones_like(ids)
    mask[:, :NUM_PADDED] = 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = model(input_ids=ids[:, NUM_PADDED:], use_cache=False).logits
            padded = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        model.train(was_training)
    ours, theirs = (each.float().log_softmax(-1) for each in (padded[:, NUM_PADDED:], alone))
    limit = MAX_DIFFERENCE if model.dtype is torch.float32 else MAX_DIFFERENCE_16
    chosen = theirs.argmax(-1, keepdim=True)
    # A value that is not a number is the same either way; the loop reports it.
    return not bool((ours - theirs).gather(-1, chosen).abs().max() > limit)


def _with_positions(
    _decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Add the positions that generation would give, unless they are given."""
    mask = kwargs.get("attention_mask")
    given = kwargs.get("position_ids") is not None or kwargs.get("past_key_values") is not None
    if mask is None or mask.dim() != 2 or given:
        return args, kwargs
    return args, {**kwargs, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
