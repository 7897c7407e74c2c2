"""The tokens with which rows of a batch begin alike are computed once.

Rows often have a long start in common: a system prompt, worked examples, the prompt of the two
sides of a preference pair or of several answers to it. No token attends to a later one, so that
the start has the same keys, values and hidden states in every row. The starts of all groups of
rows are computed in one pass, padded on the left, so that the rows continue directly after them,
as conversations continue from a server's cache. The gradients of all rows flow back through it.

A batch of n rows of s + o tokens, in g groups that share s, costs g s + n o tokens in place of
n (s + o). Dropout would be drawn once for the start of all rows, so with dropout it stays as it is.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import operator
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from training.loop.answer_loss import MAX_RELATIVE_DIFFERENCE, MISFITS, compared_parameters
from training.loop.packing import NUM_WORDS, small_network
from training.loop.shared_rows import Starts, shared_starts
from tuneline.core.progress import logger

COMPARED_TOKENS = 80
"""Tokens of the longest row of the comparison: few enough that it needs less memory than a step."""
RESTS = (16, 9, 12, 15)
"""Tokens after the start in its rows, of which two share a start and two share a shorter one."""
NETWORK_ROW, NETWORK_BORDER = 64, 16
"""Tokens of the rows, and of windows and blocks of the layers, in the test on a small network."""
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2**-8}
"""By the number format: how far hidden states may be from those of whole rows, relatively."""
NOISE_FACTOR = 3
"""Of the difference between a batch and its rows, each computed by itself: if this is more than the
rounding, hidden states may be so far apart. A wrong mask, position or row makes 5 to 400 times the
difference in a trained model."""
SHARED = {"attention_mask", "use_cache", "trained", "return_dict"}
"""Arguments of a decoder that this module knows how to divide."""


def fits_shared_starts(folder: Path, longest: int, *, padded_left: bool = False) -> bool:
    """Return whether networks of a folder's class can continue several rows from one start.

    The test is on a small network with random weights, before the model is loaded.

    Args:
        longest: Tokens of the longest row.
        padded_left: Whether batches have padding on the left.
    """
    small = small_of_class(folder)
    if small is None or longest > longest_alike(small.config):
        return False
    length = min(NETWORK_ROW, longest)
    row = torch.randint(1, NUM_WORDS, (length,), generator=torch.Generator().manual_seed(0))
    return share_starts(small, [row.tolist()], padded_left=padded_left)


def small_of_class(folder: Path) -> Any | None:
    """Return a small float32 network like a folder's, with random weights and short windows."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    try:
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config)
    except (*MISFITS, AssertionError):  # torch's, for a padding token
        return None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed every GPU too
        small = small_network(network, border=NETWORK_BORDER)
    return None if small is None else small.float()


def share_starts(
    model: Any, rows: Sequence[Sequence[int]], *, padded_left: bool = False, copy: Any = None
) -> bool:
    """Let a model compute the starts that rows of a batch share once.

    Hidden states and gradients of four short rows with two starts of unequal length are compared
    with those of the whole rows. A model whose state does not continue, one that draws random
    numbers (dropout, a router's jitter), or one that computes its activations again in the backward
    pass stays as it is.

    Args:
        rows: Token ids of training rows; the compared rows have tokens of the longest one.
        padded_left: Whether batches have padding on the left, which is then compared too.
        copy: A copy of the model that does as the model does: the reference of a whole model.

    Returns:
        Whether the model does.
    """
    base, decoder = _parts(model)
    if decoder.is_gradient_checkpointing:
        return False
    batch, starts = compared_batch(max(rows, key=len), model.device, padded_left=padded_left)
    limit, rounding = (by.get(base.dtype, 0.0) for by in (MAX_RELATIVE_DIFFERENCE, ROUNDING))
    together = functools.partial(_from_starts, decoder, decoder.forward, starts)
    try:
        if difference(*trained_twice(model, decoder, batch)) <= rounding:
            expected = compared(model, decoder, batch)
            noise = difference(_each_alone(model, decoder, batch), expected[0])
            allowed = min(limit, max(rounding, NOISE_FACTOR * noise)), limit
            found = map(difference, compared(model, together, batch), expected)
            if all(map(operator.le, found, allowed)):
                for own in [decoder, *([] if copy is None else [_parts(copy)[1]])]:
                    sharing = _sharing(own.forward, longest_alike(own.config), padded_left)
                    own.forward = types.MethodType(sharing, own)
                return True
    except MISFITS as error:
        logger.debug("%s computes every row's start: %s", type(base).__name__, error)
    return False


def _parts(model: Any) -> tuple[Any, Any]:
    """Return a model without its adapter, and its decoder."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base, base.base_model


def longest_alike(config: Any) -> float:
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


def compared_batch(
    row: Sequence[int], device: torch.device, *, padded_left: bool
) -> tuple[dict[str, torch.Tensor], Starts]:
    """Return a batch of four rows with tokens of one row, and its two starts."""
    tokens = itertools.cycle(row)
    long = min(COMPARED_TOKENS, len(row)) - max(RESTS)
    starts = Starts([0, 0, 1, 1], [long, long * 5 // 8], 0, 0)
    texts = [list(itertools.islice(tokens, length)) for length in starts.lengths]
    found = [
        [*texts[group], *itertools.islice(tokens, rest)]
        for group, rest in zip(starts.groups, RESTS, strict=True)
    ]
    before = [0, 0, *[padded_left * (long - starts.lengths[1])] * 2]
    length = max(number + len(ids) for number, ids in zip(before, found, strict=True))
    input_ids, mask = torch.zeros(2, len(found), length, dtype=torch.long, device=device)
    for index, (number, ids) in enumerate(zip(before, found, strict=True)):
        input_ids[index, number : number + len(ids)] = torch.tensor(ids, device=device)
        mask[index, number : number + len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": mask}, starts


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return how far a tensor is from another, relatively."""
    return float((ours - theirs).norm()) / (float(theirs.norm()) or 1.0)


def trained_twice(
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


def _each_alone(model: Any, decoder: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the hidden states of all rows, each from a batch of its own."""
    found = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                kept = mask.bool()
                end = int(kept.nonzero()[-1]) + 1
                row = {"input_ids": ids[None, :end], "attention_mask": mask[None, :end]}
                hidden = decoder(**row, use_cache=False).last_hidden_state[0]
                found.append(hidden[kept[:end]].float())
    finally:
        model.train(was_training)
    return torch.cat(found)


def compared(
    model: Any, decoder: Any, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states of all rows, and the gradient of a weighted sum of them."""
    was_training = model.training
    model.eval()
    try:
        hidden = decoder(**batch, use_cache=False).last_hidden_state
        hidden = hidden[batch["attention_mask"].bool()].float()
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(hidden.shape, generator=generator).to(hidden.device)
        gradients = torch.autograd.grad(
            (hidden * weights).sum(), compared_parameters(model), allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
    finally:
        model.train(was_training)
    return hidden.detach(), torch.cat([gradient.flatten().float() for gradient in gradients])


def _sharing(original: Any, longest: float, padded_left: bool) -> Any:
    # The signature stays the original one: generation reads it.
    @functools.wraps(original)
    def forward(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        if args or not _is_divisible(input_ids, kwargs) or input_ids.shape[1] > longest:
            return original(input_ids, *args, **kwargs)
        starts = _starts(input_ids, kwargs.get("attention_mask"), padded_left)
        if starts is None:
            return original(input_ids, **kwargs)
        return _from_starts(self, original, starts, input_ids, **kwargs)

    return forward


def _is_divisible(input_ids: Any, kwargs: dict[str, Any]) -> bool:
    mask = kwargs.get("attention_mask")
    return (
        {name for name, value in kwargs.items() if value is not None and value is not False}
        <= SHARED
        and not kwargs.get("use_cache")
        and input_ids is not None
        and len(input_ids) > 1
        and (mask is None or mask.dim() == 2)
    )


def _starts(input_ids: torch.Tensor, mask: torch.Tensor | None, padded_left: bool) -> Starts | None:
    if mask is None:
        return shared_starts(input_ids.tolist())
    rows, offsets = [], []
    for ids, kept in zip(input_ids.tolist(), mask.tolist(), strict=True):
        offset, length = kept.index(1) if 1 in kept else 0, sum(kept)
        # A row with a gap, or without a token, has no start.
        if not all(kept[offset : offset + length]) or not length or (offset and not padded_left):
            return None
        rows.append(ids[offset : offset + length])
        offsets.append(offset)
    return shared_starts(rows, offsets)


class _Layout(NamedTuple):
    """Where the tokens of whole rows are in the pass of the starts and in that of the rests.

    Attributes:
        groups: The group of each row.
        firsts: The first row of each group.
        start_columns: Columns of each group's start in its first row, (groups, longest start).
        starts: Which of them are tokens and not padding; padding is on the left.
        rest_columns: Columns of each row's rest, (rows, longest rest).
        rests: Which of them are tokens; padding is on the right.
        places: For each position of the whole rows, its index in both passes, one after the other;
            0 for padding.
    """

    groups: torch.Tensor
    firsts: torch.Tensor
    start_columns: torch.Tensor
    starts: torch.Tensor
    rest_columns: torch.Tensor
    rests: torch.Tensor
    places: torch.Tensor


def _layout(found: Starts, mask: torch.Tensor) -> _Layout:
    (num_rows, length), device = mask.shape, mask.device
    groups = torch.tensor(found.groups, device=device)
    sizes = torch.tensor(found.lengths, device=device)
    firsts = torch.tensor([found.groups.index(group) for group in range(len(sizes))], device=device)
    before = mask.argmax(1)
    begins, ends = before + sizes[groups], before + mask.sum(1)
    num_start, num_rest = max(found.lengths), int((ends - begins).max())
    start_columns = begins[firsts, None] + torch.arange(-num_start, 0, device=device)
    rest_columns = begins[:, None] + torch.arange(num_rest, device=device)
    rows = torch.arange(num_rows, device=device)
    column = torch.arange(length, device=device)
    in_starts = (groups * num_start + num_start - begins)[:, None] + column
    in_rests = (len(sizes) * num_start + rows * num_rest - begins)[:, None] + column
    places = in_starts.where(column < begins[:, None], in_rests)
    return _Layout(
        groups, firsts, start_columns.clamp(min=0), start_columns >= before[firsts, None],
        rest_columns.clamp(max=length - 1), rest_columns < ends[:, None],
        places.where(mask.bool(), 0).flatten(),
    )  # fmt: skip


def _from_starts(
    decoder: Any,
    original: Any,
    found: Starts,
    input_ids: torch.Tensor,
    *,
    attention_mask: torch.Tensor | None = None,
    trained: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """Compute the starts, and the rest of all rows from a cache of them."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    layout = _layout(found, mask)
    cache = DynamicCache(config=decoder.config)
    kwargs |= {"use_cache": True, "past_key_values": cache}
    of_starts, of_rests = dict(kwargs), dict(kwargs)
    if "position_ids" in inspect.signature(original).parameters:
        of_starts["position_ids"] = layout.start_columns
        of_rests["position_ids"] = layout.rest_columns
    if trained is not None:  # flat indices, see training.loop.last_layer
        places, num_early = layout.places[trained], layout.starts.numel()
        early, late = places[places < num_early].unique(), places[places >= num_early] - num_early
        # Some layers cannot compute zero positions, so one is computed that nobody reads.
        of_starts["trained"] = early if len(early) else trained.new_full((1,), num_early - 1)
        of_rests["trained"] = late if len(late) else trained.new_zeros(1)
    starts = original(
        input_ids=input_ids[layout.firsts].gather(1, layout.start_columns),
        attention_mask=None if min(found.lengths) == max(found.lengths) else layout.starts.long(),
        **of_starts,
    ).last_hidden_state
    # Not batch_select_indices: with several threads, its gradients are summed in any order.
    cache.reorder_cache(layout.groups)
    output = original(
        input_ids=input_ids.gather(1, layout.rest_columns),
        attention_mask=torch.cat([layout.starts[layout.groups], layout.rests], 1).long(),
        **of_rests,
    )
    hidden = torch.cat([starts.flatten(0, 1), output.last_hidden_state.flatten(0, 1)])
    hidden = hidden.index_select(0, layout.places)
    output.last_hidden_state = hidden.view(*input_ids.shape, -1)
    output.past_key_values = None
    return output
