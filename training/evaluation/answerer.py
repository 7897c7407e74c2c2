"""A model that answers and scores, in this process or behind an endpoint.

Every metric and the forgetting suite ask through these functions, so that both kinds of models are
measured alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from training.data.row import Row
from tuneline.core.messages import Message


@dataclass(frozen=True)
class Question:
    """A conversation to answer, with the tools that the model may call."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Reply:
    """A greedy answer.

    Attributes:
        text: The answer without special tokens.
        finish_reason: `stop` if the model ended the answer by itself.
        tool_calls: Name and arguments of each call.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    tool_calls: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class AnswerLoss:
    """The negative log-likelihood of an expected answer and its stop token, in nats."""

    nats: float
    num_tokens: int


class LossesAbsentError(Exception):
    """The model does not give log-probabilities of a given text; the message says why."""


@dataclass(frozen=True)
class Answerer:
    """A model that answers.

    Attributes:
        answer: Returns the greedy answers to questions, each with at most so many tokens.
        losses: Returns the losses of the rows' expected answers, or raises LossesAbsentError.
        about: Facts about it, for a manifest.
    """

    answer: Callable[[Sequence[Question], int], list[Reply]]
    losses: Callable[[Sequence[Row]], list[AnswerLoss]]
    about: dict[str, Any] = field(default_factory=dict)
