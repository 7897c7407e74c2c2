"""A model that answers and scores, in this process or behind an endpoint.

Every metric and the forgetting suite ask through these functions, so that both kinds of models are
measured alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

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


OnReply = Callable[[int, Reply], None]
"""Gets the index of a question and its reply, in the order in which they come."""


def ignore_reply(_index: int, _reply: Reply) -> None:
    """Do nothing with a reply."""


class Answer(Protocol):
    """Asks a model for greedy answers to questions, each with at most so many tokens."""

    def __call__(
        self, questions: Sequence[Question], max_new_tokens: int, on_reply: OnReply = ignore_reply
    ) -> list[Reply]: ...


@dataclass(frozen=True)
class Answerer:
    """A model that answers.

    Attributes:
        answer: Returns the greedy answers to questions.
        losses: Returns the losses of the rows' expected answers, or raises LossesAbsentError.
        identity: All that its answers depend on besides the question, as JSON.
        about: Facts about it, for a manifest.
    """

    answer: Answer
    losses: Callable[[Sequence[Row]], list[AnswerLoss]]
    identity: Any
    about: dict[str, Any] = field(default_factory=dict)
