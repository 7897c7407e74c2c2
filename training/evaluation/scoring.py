"""Scoring answers against expected ones. Pure calculation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from tuneline.core.config import StrictModel
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import Message, Messages
from tuneline.core.statistics import wilson_interval

_REASONING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class Prediction(StrictModel):
    """One held-out prompt, the answer expected and the answer given."""

    prompt: Messages
    expected: str
    answer: str
    correct: bool
    """Whether the two are equal without white space around them and a leading `<think>` block."""
    finish_reason: Literal["stop", "length"]
    """`stop` if the model ended the answer by itself."""


class Scores(StrictModel):
    """The scores of a set of predictions."""

    num_rows: int
    num_correct: int
    exact_match: float
    """Share of answers that are equal as a whole."""
    exact_match_interval: tuple[float, float]
    """Wilson score interval of `exact_match` at 95 %."""
    field_accuracy: dict[str, float]
    """For each field, the share of rows expecting it whose answer has it with the same value."""
    stopped: float
    """Share of answers that the model ended by itself."""


def predict(
    prompt: Sequence[Message],
    expected: str,
    answer: str,
    finish_reason: Literal["stop", "length"],
) -> Prediction:
    return Prediction(
        prompt=list(prompt),
        expected=expected,
        answer=answer,
        correct=_bare(answer) == _bare(expected),
        finish_reason=finish_reason,
    )


def score(predictions: Sequence[Prediction], fields: Literal["lines", "json"] | None) -> Scores:
    """Score predictions.

    Raises:
        ValueError: There are none.
        ConfigError: No expected answer has `Name: value` lines, with `fields` `lines`.
        DataError: An expected answer is not a JSON object, with `fields` `json`.
    """
    if not predictions:
        raise ValueError("no predictions to score")
    num_correct = sum(prediction.correct for prediction in predictions)
    return Scores(
        num_rows=len(predictions),
        num_correct=num_correct,
        exact_match=num_correct / len(predictions),
        exact_match_interval=wilson_interval(num_correct / len(predictions), len(predictions)),
        field_accuracy=_field_accuracy(predictions, fields) if fields else {},
        stopped=sum(p.finish_reason == "stop" for p in predictions) / len(predictions),
    )


def split_fields(answer: str, fields: Literal["lines", "json"]) -> dict[str, Any]:
    """An answer's fields by name; empty where it has none. The first line of a name counts."""
    bare = _bare(answer)
    if fields == "json":
        try:
            value = json.loads(bare)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}
    found: dict[str, Any] = {}
    for line in bare.split("\n"):
        name, colon, value = line.partition(":")
        if colon and name.strip():
            found.setdefault(name.strip(), value.strip())
    return found


def _field_accuracy(
    predictions: Sequence[Prediction], fields: Literal["lines", "json"]
) -> dict[str, float]:
    counts: dict[str, list[int]] = {}
    for index, prediction in enumerate(predictions):
        expected = split_fields(prediction.expected, fields)
        if not expected and fields == "json" and _bare(prediction.expected) != "{}":
            raise DataError(
                f"held-out row {index + 1}: the expected answer is not a JSON object: "
                f"{prediction.expected[:60]!r}",
                hint="Set evaluation.fields to lines, or leave it out.",
            )
        given = split_fields(prediction.answer, fields)
        for name, value in expected.items():
            equal = name in given and given[name] == value
            counts.setdefault(name, []).append(equal)
    if not counts:
        raise ConfigError(
            f"evaluation.fields: {fields}: no expected answer has such fields",
            hint="Leave out evaluation.fields to score only whole answers.",
        )
    return {name: sum(equal) / len(equal) for name, equal in counts.items()}


def _bare(text: str) -> str:
    """Without white space around it, and without the reasoning that some models write first."""
    return _REASONING.sub("", text).strip()
