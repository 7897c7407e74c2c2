"""Scoring tokens with an opened form: the next-token logits at the last positions of a sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tuneline.models.greedy import Score


@dataclass(frozen=True)
class OpenedForm:
    """A form that is loaded and scores tokens."""

    score: Score
    tokenizer: Any
    stop_ids: frozenset[int]
    num_rows: int
    """The model knows the token ids below this number."""


def run_graph(graph: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a function `input_ids` → logits in float32 that keeps nothing for gradients."""

    def run(input_ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return graph(input_ids).float()

    return run


def whole_scores(run: Callable[[torch.Tensor], torch.Tensor]) -> Score:
    """Return scores by a graph without a cache: `input_ids` (batch, length) to logits."""

    def score(token_ids: list[int], last: int) -> torch.Tensor:
        return run(torch.tensor([token_ids]))[0, -last:].float()

    return score
