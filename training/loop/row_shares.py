"""The rows of a batch are computed in shares, one for each thread of the processor.

An operation of a small model is so short that two threads which divide it lose a quarter of their
time. Here each thread computes other rows, from the embedding to the gradients, and waits for
nobody until the end of the batch. A share is a tree of tokens; see
`training.loop.distinct_tokens`. It is freed before the thread begins the next one, so that a large
batch needs the memory of one share per thread.

The shares depend on the rows and the number of threads only, and their gradients are added in
order, so that equal runs have equal bits.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from training.adapters.lora_linear import has_plain_layers_only
from training.loop.answer_loss import IGNORED, MAX_RELATIVE_DIFFERENCE, MISFITS, loss_of_hidden
from training.loop.distinct_tokens import (
    attention_of_trees,
    decode_tree,
    num_new_tokens,
    tree_of,
)
from training.loop.packing import NUM_WORDS
from training.loop.ranks import num_ranks
from training.loop.shared_rows import count_shares
from training.loop.shared_start import (
    NETWORK_ROW,
    compared,
    compared_batch,
    difference,
    longest_alike,
    small_of_class,
    trained_twice,
)
from tuneline.core.progress import logger

MAX_TRAINED = 2**24
"""Trained parameters: each thread has a copy of their gradients, of 64 MiB at most."""
INPUTS = {"input_ids", "labels", "attention_mask", "use_cache"}
"""A batch with more has rows of another kind: packed rows have positions."""

Row = tuple[list[int], list[int]]
"""Token ids and labels of a row, without padding."""


def class_fits_row_shares(folder: Path, longest: int) -> bool:
    """Return whether networks of a folder's class compute trees as they compute rows.

    The test is on a small network with random weights and short windows, before the model is
    loaded.

    Args:
        longest: Tokens of the longest row.
    """
    try:
        small = small_of_class(folder)
        words = torch.randint(
            1, NUM_WORDS, (min(NETWORK_ROW, longest),), generator=torch.Generator().manual_seed(0)
        )
        # The rotation of some classes changes with the length of the batch, for all threads.
        return (
            small is not None
            and longest_alike(small.config) == math.inf
            # No mask is made, as for FlashAttention: a layer must name its window.
            and getattr(small, "_supports_flash_attn", False)
            and small.config.get_text_config()._attn_implementation == "sdpa"
            and _trees_are_alike(small, small, words.tolist())
        )
    except MISFITS as error:
        logger.debug("networks of %s compute whole rows: %s", folder, error)
    return False


def fits_row_shares(model: Any, rows: Sequence[Sequence[int]]) -> bool:
    """Return whether batches of a model, whose class fits, can be computed in shares.

    That is so for plain LoRA on a float32 model on the CPU. Hidden states and gradients of four
    short rows are compared with those of whole rows.

    Args:
        rows: Token ids of training rows; the compared rows have tokens of the longest one.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else None
    if (
        base is None
        or not has_plain_layers_only(model)
        or num_ranks() > 1
        or base.dtype is not torch.float32
        or base.device.type != "cpu"
        or base.base_model.is_gradient_checkpointing
        or base.config.get_text_config()._attn_implementation != "sdpa"
        or sum(p.numel() for p in model.parameters() if p.requires_grad) > MAX_TRAINED
    ):
        return False
    longest = max(rows, key=len)
    try:
        batch, _ = compared_batch(longest, base.device, padded_left=False)
        # Threads would draw the random numbers of dropout in any order.
        is_random = difference(*trained_twice(model, base.base_model, batch)) > 0
        return not is_random and _trees_are_alike(model, base, longest)
    except MISFITS as error:
        logger.debug("%s computes whole rows: %s", type(base).__name__, error)
    return False


def _trees_are_alike(model: Any, base: Any, row: Sequence[int]) -> bool:
    """Return whether a tree has the hidden states and gradients of whole rows."""
    batch, _ = compared_batch(row, base.device, padded_left=False)
    expected = compared(model, base.base_model, batch)
    with attention_of_trees(base.config):
        found = compared(model, functools.partial(_decode_batch, base.base_model), batch)
    allowed = MAX_RELATIVE_DIFFERENCE[torch.float32]
    return all(difference(*pair) <= allowed for pair in zip(found, expected, strict=True))


def _decode_batch(
    decoder: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool
) -> Any:
    """Return what a decoder returns for a batch with padding on the right, by its tree."""
    del use_cache
    rows = [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, attention_mask, strict=True)]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    tree = tree_of([rows[index] for index in order])
    places = torch.empty_like(tree.places)
    places[order] = tree.places
    return SimpleNamespace(last_hidden_state=decode_tree(decoder, tree)[places])


@dataclass(frozen=True)
class RowThreads:
    """Threads that compute rows.

    Attributes:
        number: The threads that torch had before.
        parameters: The trained parameters; a search of the model for them takes 2 ms.
    """

    pool: ThreadPoolExecutor
    number: int
    parameters: Sequence[torch.nn.Parameter]

    @contextlib.contextmanager
    def given_back(self) -> Iterator[None]:
        """Give torch its threads back: an evaluation computes whole batches."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.number)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextlib.contextmanager
def row_threads(model: Any) -> Iterator[RowThreads]:
    """Start as many threads as torch has, which has one until the end.

    The steps of an adapter's optimizer are too short for several. New threads for each batch would
    have to ask the operating system for their memory again.
    """
    number = torch.get_num_threads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ThreadPoolExecutor(number, "rows") as pool:
        torch.set_num_threads(1)
        try:
            yield RowThreads(pool, number, trained)
        finally:
            torch.set_num_threads(number)


def loss_in_shares(
    model: Any, inputs: dict[str, torch.Tensor], threads: RowThreads
) -> torch.Tensor | None:
    """Return the summed loss of a batch in nats; its gradients are computed already.

    Returns:
        None if the batch has other inputs than rows with padding on the right.
    """
    rows = _rows(inputs)
    if rows is None:
        return None
    base = model.get_base_model()
    shares, num_workers = divide(rows, threads.number)
    own = threads.number // num_workers
    compute = functools.partial(_loss_and_gradients, base, threads.parameters, own, num_workers)
    before = torch.get_num_threads()
    with attention_of_trees(base.config):
        try:
            torch.set_num_threads(own)  # MKL has one number for the whole process
            found = iter((map if num_workers == 1 else threads.pool.map)(compute, shares))
            loss, gradients = next(found)
            for part, others in found:  # one share after another: each has a copy of the gradients
                loss = loss + part
                gradients = list(map(_sum, gradients, others))
        finally:
            torch.set_num_threads(before)
    return _Known.apply(loss, gradients, *threads.parameters)


def _rows(inputs: dict[str, torch.Tensor]) -> list[Row] | None:
    """Return the rows in the order of their tokens."""
    if inputs.keys() != INPUTS:
        return None
    columns = (inputs[name].tolist() for name in ("input_ids", "labels", "attention_mask"))
    rows = []
    for ids, labels, mask in zip(*columns, strict=True):
        length = sum(mask)
        if not length or not all(mask[:length]):
            return None
        rows.append((ids[:length], labels[:length]))
    return sorted(rows)


def divide(rows: Sequence[Row], num_threads: int) -> tuple[list[list[Row]], int]:
    """Return the shares of sorted rows, and how many are computed at once."""
    new = num_new_tokens([ids for ids, _ in rows])
    total = sum(new)
    num_shares, num_workers = count_shares(total, len(rows), num_threads)
    shares: list[list[Row]] = [[] for _ in range(num_shares)]
    before = 0
    for row, number in zip(rows, new, strict=True):
        shares[(2 * before + number) * num_shares // (2 * total)].append(row)
        before += number
    return [share for share in shares if share], num_workers


def _loss_and_gradients(
    base: Any,
    parameters: Sequence[torch.Tensor],
    num_threads: int,
    num_at_once: int,
    rows: Sequence[Row],
) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
    torch.set_num_threads(num_threads)  # OpenMP has a number for each thread
    tree = tree_of([ids for ids, _ in rows])
    predicting = [
        (place, target)
        for (_, labels), places in zip(rows, tree.places.tolist(), strict=True)
        for place, target in zip(places, labels[1:], strict=False)
        if target != IGNORED
    ]
    if not predicting:
        return torch.zeros(()), [None] * len(parameters)
    places, targets = torch.tensor(predicting).unbind(1)
    hidden = decode_tree(base.base_model, tree, trained=places.unique())
    loss = loss_of_hidden(base, hidden.index_select(0, places), targets, num_at_once)
    return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)


def _sum(left: torch.Tensor | None, right: torch.Tensor | None) -> torch.Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right


class _Known(torch.autograd.Function):  # type: ignore[misc]
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Any, gradients: Any, *_parameters: Any) -> Any:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: Any) -> Any:
        return (
            None,
            None,
            *(None if gradient is None else gradient * factor for gradient in ctx.gradients),
        )
