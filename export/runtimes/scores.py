"""Scoring tokens with an opened form: the next-token logits at the last positions of a sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Score = Callable[[list[int], int], torch.Tensor]
"""`score(token_ids, last)`: the next-token logits at the `last` last positions, in float32, shape
(last, vocabulary)."""


@dataclass(frozen=True)
class OpenedForm:
    """A form that is loaded and scores tokens."""

    score: Score
    tokenizer: Any
    stop_ids: frozenset[int]
    num_rows: int
    """The model knows the token ids below this number."""


def cached_scores(network: Any) -> Score:
    """Return scores by a transformers causal LM at batch size 1.

    A call that continues the sequence of the call before reuses its key-value cache.
    """
    seen: list[int] = []
    cache: Any = None

    def score(token_ids: list[int], last: int) -> torch.Tensor:
        nonlocal seen, cache
        fresh = token_ids[len(seen) :]
        if cache is None or token_ids[: len(seen)] != seen or len(fresh) < last:
            fresh, cache = token_ids, None
        with torch.inference_mode():
            output = network(
                input_ids=torch.tensor([fresh]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=last,
            )
        seen, cache = list(token_ids), output.past_key_values
        return output.logits[0].float()

    return score


def whole_scores(run: Callable[[torch.Tensor], torch.Tensor]) -> Score:
    """Return scores by a graph without a cache: `input_ids` (batch, length) to logits."""

    def score(token_ids: list[int], last: int) -> torch.Tensor:
        return run(torch.tensor([token_ids]))[0, -last:].float()

    return score
