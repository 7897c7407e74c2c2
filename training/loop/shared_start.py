"""The tokens with which all rows of a batch begin are computed once.

Rows often have a long start in common: a system prompt, worked examples. No token attends to a
later one, so that the start has the same keys, values and hidden states in every row. They are
computed for one row. The rows continue from them as a conversation continues from a server's cache,
and the gradients of all rows flow back through them.

A batch of n rows of s + o tokens, of which s are shared, costs s + n o tokens in place of
n (s + o). Dropout would be drawn once for the start of all rows, so with dropout it stays as it is.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from training.config import TrainingConfig
from training.loop.answer_loss import MAX_RELATIVE_DIFFERENCE, MISFITS, compared_parameters
from training.loop.packing import NUM_WORDS, small_network
from tuneline.core.progress import logger

LEAST_TOKENS = 32
"""A shorter start saves less than a second pass through the layers costs."""
LEAST_SAVING = 0.15
"""Share of a batch's positions that are not computed."""
END_OF_START, OWN_TOKENS = 64, 16
"""Tokens of two rows that are compared: most of them shared, whatever the rows share, and few
enough that the comparison needs less memory than a step."""
NUM_COMPARED = 8
"""Last positions of a row whose hidden states are compared."""
NETWORK_START, NETWORK_ROW, NETWORK_WINDOW = 40, 56, 16
"""Tokens of the rows, and of the attention's window, in the test on a small network."""
SHARED = {"attention_mask", "use_cache", "trained", "return_dict"}
"""Arguments of a decoder that this module knows how to divide."""


def start_length(config: TrainingConfig, rows: Sequence[list[int]]) -> int:
    """Return how many tokens at the start of all rows training computes once for a batch.

    Args:
        rows: The token ids of every training row; a preference pair has two rows.

    Returns:
        0 if the start is too short to gain by it, or if the configuration does not allow it.
    """
    batch_rows = min(config.per_device_train_batch_size * config.method.num_sequences, len(rows))
    if (
        batch_rows < 2
        or config.packing
        or config.lora_dropout
        or config.method.num_sampled_tokens
        or config.gradient_checkpointing is True
        or config.router_aux_loss_coef
        or (config.launch is not None and config.launch.strategy == "fsdp2")
    ):
        return 0
    first, last = min(rows), max(rows)  # in the order of their tokens: these two differ soonest
    pairs = enumerate(zip(first, last, strict=False))
    alike = next((index for index, (a, b) in pairs if a != b), len(first))
    start = min(alike, *(len(row) - 1 for row in rows))
    return start if _is_worth(start, batch_rows, sum(map(len, rows)) / len(rows)) else 0


def _is_worth(start: int, num_rows: int, row_tokens: float) -> bool:
    return start >= LEAST_TOKENS and start * (num_rows - 1) >= LEAST_SAVING * num_rows * row_tokens


def fits_shared_start(folder: Path, longest: int) -> bool:
    """Return whether networks of a folder's class can continue several rows from one start.

    The test is on a small network with random weights, before the model is loaded.

    Args:
        longest: Tokens of the longest row.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if longest > _longest_alike(config):
        return False
    try:
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config)
    except MISFITS:
        return False
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed every GPU too
        small = small_network(network)
        if small is None:
            return False
        text = small.config.get_text_config()
        if getattr(text, "sliding_window", None):
            text.sliding_window = NETWORK_WINDOW
            small = type(small)(small.config)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, NUM_WORDS, (2, NETWORK_ROW), generator=generator)
    rows[1, :NETWORK_START] = rows[0, :NETWORK_START]
    return share_start(small.float(), rows.tolist())


def share_start(model: Any, rows: Sequence[Sequence[int]]) -> bool:
    """Let a model compute what the rows of a batch have in common at their start once.

    Hidden states and gradients of two rows, cut to the end of their start and a few tokens after
    it, are compared with those of the whole rows. A model whose state is not a cache of keys and
    values (a state-space layer, a short convolution), one that draws random numbers (dropout, a
    router's jitter), or one that computes its activations again in the backward pass stays as it
    is.

    Args:
        rows: Token ids of training rows that start alike.

    Returns:
        Whether the model does.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = base.base_model
    if decoder.is_gradient_checkpointing:
        return False
    batch = _two_rows(rows, model.device)
    own = decoder.__dict__.get("forward")
    try:
        allowed = MAX_RELATIVE_DIFFERENCE[base.dtype]
        if not _is_close(*_trained_twice(model, decoder, batch), allowed):
            return False
        expected = _compared(model, decoder, batch)
        longest = _longest_alike(decoder.config)
        decoder.forward = types.MethodType(_sharing(decoder.forward, longest), decoder)
        if all(map(_is_close, _compared(model, decoder, batch), expected, [allowed] * 2)):
            return True
    except MISFITS as error:
        logger.debug("%s computes every row's start: %s", type(base).__name__, error)
    decoder.__dict__.pop("forward", None)
    if own is not None:
        decoder.forward = own
    return False


def _longest_alike(config: Any) -> float:
    """Return the longest row in which a token's rotation does not depend on the row's length."""
    text = config.get_text_config()
    ropes = getattr(text, "rope_parameters", None) or {}
    limits = [math.inf]
    for rope in [ropes, *ropes.values()]:
        kind = rope.get("rope_type") if isinstance(rope, dict) else None
        if kind == "longrope":
            limits.append(rope.get("original_max_position_embeddings") or 0)
        elif kind == "dynamic":
            # A row of this very length keeps the rotation of the longest row before it.
            limits.append(getattr(text, "max_position_embeddings", 1) - 1)
    return min(limits)


def _two_rows(rows: Sequence[Sequence[int]], device: torch.device) -> dict[str, torch.Tensor]:
    two = sorted(rows, key=len)[:2]
    pairs = enumerate(zip(*two, strict=False))
    start = next((index for index, (a, b) in pairs if a != b), len(two[0]))
    cut = [row[max(0, start - END_OF_START) : start + OWN_TOKENS] for row in two]
    lengths = torch.tensor([len(row) for row in cut], device=device)
    tensors = [torch.tensor(row, device=device) for row in cut]
    input_ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    positions = torch.arange(input_ids.shape[1], device=device)
    mask = (positions < lengths[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": mask}


def _is_close(ours: torch.Tensor, theirs: torch.Tensor, allowed: float) -> bool:
    return float((ours - theirs).norm()) <= allowed * float(theirs.norm())


def _trained_twice(
    model: Any, decoder: Any, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states of two passes as in training: random numbers make them differ."""
    was_training = model.training
    model.train()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            first, second = (
                decoder(**batch, use_cache=False).last_hidden_state.float() for _ in range(2)
            )
    finally:
        model.train(was_training)
    return first, second


def _compared(
    model: Any, decoder: Any, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden states of two rows, and the gradient of a weighted sum of them."""
    lengths = batch["attention_mask"].sum(1).tolist()
    was_training = model.training
    model.eval()
    try:
        hidden = decoder(**batch, use_cache=False).last_hidden_state.float()
        last = torch.stack(
            [
                row[length - NUM_COMPARED : length]
                for row, length in zip(hidden, lengths, strict=True)
            ]
        )
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(last.shape, generator=generator).to(last.device)
        gradients = torch.autograd.grad(
            (last * weights).sum(), compared_parameters(model), allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
    finally:
        model.train(was_training)
    return last.detach(), torch.cat([gradient.flatten().float() for gradient in gradients])


def _sharing(original: Any, longest: float) -> Any:
    # The signature stays the original one: generation reads it.
    @functools.wraps(original)
    def forward(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        if (
            args
            or not _is_divisible(input_ids, kwargs)
            or input_ids.shape[1] > longest
            or not (start := _common_start(input_ids))
        ):
            return original(input_ids, *args, **kwargs)
        return _from_start(self, original, start, input_ids, **kwargs)

    return forward


def _is_divisible(input_ids: Any, kwargs: dict[str, Any]) -> bool:
    mask = kwargs.get("attention_mask")
    return (
        {name for name, value in kwargs.items() if value is not None and value is not False}
        <= SHARED
        and not kwargs.get("use_cache")
        and input_ids is not None
        and len(input_ids) > 1
        and (mask is None or (mask.dim() == 2 and bool(mask[:, 0].all())))
    )


def _common_start(input_ids: torch.Tensor) -> int:
    """Return how many tokens all rows of a batch share; 0 if it is not worth a pass of its own."""
    num_rows, length = input_ids.shape
    alike = (input_ids == input_ids[:1]).all(0)[:-1]
    start = int(alike.cumprod(0).sum())
    return start if _is_worth(start, num_rows, length) else 0


def _from_start(
    decoder: Any,
    original: Any,
    start: int,
    input_ids: torch.Tensor,
    *,
    attention_mask: torch.Tensor | None = None,
    trained: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """Compute the start for one row, and the rest of all rows from a cache of it."""
    num_rows, length = input_ids.shape
    cache = DynamicCache(config=decoder.config)
    kwargs |= {"use_cache": True, "past_key_values": cache}
    of_start, of_rest = kwargs, kwargs
    if trained is not None:  # flat indices, see training.loop.last_layer
        row, position = trained // length, trained % length
        early, is_late = position[position < start].unique(), position >= start
        # Some layers cannot compute zero positions, so one is computed that nobody reads.
        of_start = {**kwargs, "trained": early if len(early) else trained.new_zeros(1)}
        late = row[is_late] * (length - start) + position[is_late] - start
        of_rest = {**kwargs, "trained": late}
    shared = original(input_ids=input_ids[:1, :start], **of_start).last_hidden_state
    cache.batch_repeat_interleave(num_rows)
    output = original(input_ids=input_ids[:, start:], attention_mask=attention_mask, **of_rest)
    output.last_hidden_state = torch.cat(
        [shared.expand(num_rows, -1, -1), output.last_hidden_state], dim=1
    )
    output.past_key_values = None
    return output
