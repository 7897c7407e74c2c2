"""One held-out prompt with the answers expected and given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from training.data.row import Row
from training.evaluation.answer_text import same_json
from training.evaluation.tool_calls import parse_tool_calls
from tuneline.core.config import StrictModel
from tuneline.core.messages import Messages, bare_answer

FinishReason = Literal["stop", "length"]


class Prediction(StrictModel):
    """One held-out prompt, the answer expected and the answer given."""

    prompt: Messages
    expected: str
    answer: str
    correct: bool
    """Whether the two are equal without white space around them and a leading `<think>` block,
    and call the same tools with equal arguments."""
    finish_reason: FinishReason
    """`stop` if the model ended the answer by itself."""
    expected_tool_calls: tuple[dict[str, Any], ...] = ()
    """Name and arguments of each call."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    nats: float | None = None
    """Negative log-likelihood of the expected answer and its stop token."""
    num_answer_tokens: int | None = None
    """Tokens of the expected answer with its stop token."""
    line: int = 0
    """The row's line in the held-out rows, from 1; 0 if it is not known."""
    scores: dict[str, float | None] = Field(default_factory=dict)
    """The row's value of each metric."""

    @property
    def expects_text(self) -> bool:
        """Return whether the expected answer is a text, and not only tool calls."""
        return bool(self.expected.strip()) or not self.expected_tool_calls


def predict(
    row: Row,
    answer: str,
    finish_reason: FinishReason,
    tool_calls: Sequence[dict[str, Any]] = (),
) -> Prediction:
    """Return the prediction of a row, without metrics."""
    expected_calls = expected_tool_calls(row)
    return Prediction(
        prompt=list(row.prompt),
        expected=row.answer,
        answer=answer,
        correct=_equal(row, answer, expected_calls, tool_calls),
        finish_reason=finish_reason,
        expected_tool_calls=tuple(expected_calls),
        tool_calls=tuple(tool_calls),
        line=row.line,
    )


def expected_tool_calls(row: Row) -> list[dict[str, Any]]:
    """Return name and arguments of each call in a row's answer."""
    calls = row.completion[-1].get("tool_calls", []) if row.completion else []
    return [
        {"name": call["function"]["name"], "arguments": call["function"].get("arguments", {})}
        for call in calls
    ]


def _equal(
    row: Row,
    answer: str,
    expected_calls: Sequence[dict[str, Any]],
    calls: Sequence[dict[str, Any]],
) -> bool:
    if expected_calls:
        # A model may write a sentence before a call; the calls are the answer.
        return same_json(expected_calls, calls)
    # An expected text may itself be a call that was never taken apart.
    expected_in_text = parse_tool_calls(row.answer, row.tools)
    is_called = bool(calls) and not same_json(expected_in_text, calls)
    return not is_called and bare_answer(answer) == bare_answer(row.answer)
