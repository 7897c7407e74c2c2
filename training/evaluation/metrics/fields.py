"""Precision, recall and F1 of each field of an answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from training.config import EvaluationConfig
from training.evaluation.answer_text import FieldForm, same_json, split_fields
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import bare_answer
from tuneline.core.statistics import wilson_interval


def score_fields(predictions: Sequence[Prediction], config: EvaluationConfig) -> Scored:
    """Return the share of expected fields that each answer has with the same value.

    Of each field, `recall` is the share of the rows expecting it whose answer has the expected
    value; `precision` is the share of the answers having it whose value is the expected one.
    Precision is null for a field that no answer has.

    Raises:
        ConfigError: No expected answer has such fields.
        DataError: An expected answer is not a JSON object, with `fields` `json`.
    """
    form = config.fields
    if form is None:
        raise ConfigError(
            "evaluation.metrics: fields needs evaluation.fields; found none",
            hint="Try: --set evaluation.fields=lines",
        )
    values: list[float | None] = []
    num_expected: defaultdict[str, int] = defaultdict(int)
    num_given: defaultdict[str, int] = defaultdict(int)
    num_right: defaultdict[str, int] = defaultdict(int)
    for index, prediction in enumerate(predictions):
        if not prediction.expects_text:
            values.append(None)
            continue
        expected = expected_fields(prediction, form, index)
        given = split_fields(prediction.answer, form)
        right = [
            name for name, value in expected.items()
            if name in given and same_json(value, given[name])
        ]  # fmt: skip
        for names, counts in ((expected, num_expected), (given, num_given), (right, num_right)):
            for name in names:
                counts[name] += 1
        values.append(len(right) / len(expected) if expected else None)
    if not num_expected:
        raise ConfigError(
            f"evaluation.fields: {form}: no expected answer has such fields",
            hint="Leave out evaluation.fields to score only whole answers.",
        )
    details = {
        name: _rates(num_expected[name], num_given[name], num_right[name]) for name in num_expected
    }
    return Scored(values, details)


def expected_fields(prediction: Prediction, form: FieldForm, index: int) -> dict[str, Any]:
    """Return the fields of an expected answer.

    Raises:
        DataError: It is not a JSON object, with the form `json`.
    """
    expected = split_fields(prediction.expected, form)
    if not expected and form == "json" and bare_answer(prediction.expected) != "{}":
        raise DataError(
            f"held-out row {index + 1}: the expected answer is not a JSON object: "
            f"{prediction.expected[:60]!r}",
            hint="Set evaluation.fields to lines, or leave it out.",
        )
    return expected


def _rates(num_expected: int, num_given: int, num_right: int) -> dict[str, Any]:
    recall = num_right / num_expected
    return {
        "num_expected": num_expected,
        "num_given": num_given,
        "num_right": num_right,
        "precision": num_right / num_given if num_given else None,
        "recall": recall,
        "recall_interval": wilson_interval(recall, num_expected),
        "f1": 2 * num_right / (num_expected + num_given),
    }
