"""Every distinct start of a batch's rows is computed once, and no padding.

No token attends to a later one, so that two rows have the same hidden states as long as their
tokens are the same. Sorted rows are a tree: a row continues the one before it where they differ.
The tokens of the tree are one sequence. Layers that read one position at a time (norms, linear
layers, MLPs) compute it as it is; attention takes queries, keys and values back to whole rows. Of
rows that start alike, gradients come together at the tokens that they share.

The 16 rows of a batch of short questions have 15 to 20 % fewer tokens so, even if they have no
start in common. Rows with a long common start are better computed by
`training.loop.shared_start`, whose attention also computes it once.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "tuneline_distinct_tokens"
"""The name of the attention in transformers. It has no function for masks: none is made."""


class Tree(NamedTuple):
    """The distinct tokens of rows.

    Attributes:
        input_ids: The tokens, (1, tokens).
        position_ids: Their positions in their rows, (1, tokens).
        places: For each position of the padded rows, the index of its token, (rows, longest row);
            padding has the row's last token.
        firsts: For each token, the index of a position of the flat padded rows that has it.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    places: torch.Tensor
    firsts: torch.Tensor


class _Current(threading.local):
    """The tree that this thread computes."""

    tree: Tree | None = None


CURRENT = _Current()


def num_new_tokens(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return for each of several sorted rows how many tokens the row before it does not have."""
    alike = [
        next(
            (k for k, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), min(map(len, pair))
        )
        for pair in itertools.pairwise(rows)
    ]
    return [len(row) - number for row, number in zip(rows, [0, *alike], strict=True)]


def tree_of(rows: Sequence[Sequence[int]]) -> Tree:
    """Return the distinct tokens of sorted rows."""
    length = max(map(len, rows))
    ids: list[int] = []
    positions: list[int] = []
    firsts: list[int] = []
    places: list[list[int]] = []
    own: list[int] = []
    for index, (row, number) in enumerate(zip(rows, num_new_tokens(rows), strict=True)):
        shared = len(row) - number
        own = [*own[:shared], *range(len(ids), len(ids) + number)]
        ids += row[shared:]
        positions += range(shared, len(row))
        firsts += range(index * length + shared, index * length + len(row))
        places.append(own + own[-1:] * (length - len(row)))
    return Tree(
        torch.tensor([ids]), torch.tensor([positions]), torch.tensor(places), torch.tensor(firsts)
    )


def decode_tree(decoder: Any, tree: Tree, **kwargs: Any) -> torch.Tensor:
    """Return a decoder's last hidden states of a tree, (tokens, hidden).

    It must be called inside `attention_of_trees`.
    """
    CURRENT.tree = tree
    try:
        output = decoder(
            input_ids=tree.input_ids, position_ids=tree.position_ids, use_cache=False, **kwargs
        )
    finally:
        CURRENT.tree = None
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden


@contextlib.contextmanager
def attention_of_trees(config: Any) -> Iterator[None]:
    """Let a model compute trees, in all threads. Until the end, it cannot compute rows."""
    own = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = own


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    tree = CURRENT.tree
    if tree is None:
        raise ValueError(f"{ATTENTION} was called without a tree")
    rows = [_in_rows(tensor, tree) for tensor in (query, key, value)]
    length = tree.places.shape[1]
    if sliding_window is not None and length > sliding_window:
        distance = torch.arange(length)[:, None] - torch.arange(length)
        attention_mask = ((distance >= 0) & (distance < sliding_window))[None, None]
    output, _ = sdpa_attention_forward(module, *rows, attention_mask, **kwargs)
    return output.flatten(0, 1).index_select(0, tree.firsts)[None], None


def _in_rows(tensor: torch.Tensor, tree: Tree) -> torch.Tensor:
    """Return (1, heads, tokens, size) as (rows, heads, positions, size)."""
    flat = tensor.transpose(1, 2)[0].index_select(0, tree.places.flatten())
    return flat.view(*tree.places.shape, *flat.shape[1:]).transpose(1, 2)


AttentionInterface.register(ATTENTION, _attend)
