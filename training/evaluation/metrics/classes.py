"""Precision, recall and F1 of each class, and confusion matrices.

A whole answer is a class if the data has few distinct answers; so is the value of a field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from training.config import EvaluationConfig
from training.evaluation.answer_text import FieldForm, split_fields
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction
from tuneline.core.environment import require
from tuneline.core.errors import ConfigError
from tuneline.core.messages import bare_answer

MAX_CLASSES = 50
"""Distinct values above which a table of classes helps nobody."""
MAX_CHARACTERS = 80
OTHER = "(another)"
"""A value that is not one of the expected classes."""
MISSING = "(missing)"
"""The answer lacks the field, or is empty."""
WHOLE = "answer"
"""The name of the whole answer, if it is the class."""


def class_targets(expected: Sequence[str], config: EvaluationConfig) -> list[str]:
    """Return the names of the fields whose values are classes, or `answer`; empty if none is."""
    columns: dict[str, list[str]] = {}
    for answer in expected:
        for name, label in labels_of(answer, config).items():
            columns.setdefault(name, []).append(label)
    return [name for name, labels in columns.items() if _are_classes(labels)]


def score_classes(predictions: Sequence[Prediction], config: EvaluationConfig) -> Scored:
    """Return, for each row, the share of its classes that the answer gets right.

    `details` has, for each target, the classes with precision (null if the class is never given),
    recall, F1 and number of rows; their macro means; and the confusion matrix: a row for each
    expected class, a column for each class given, the last two for other and missing values.

    Raises:
        ConfigError: Neither the answers nor any field are classes.
        MissingError: scikit-learn is not installed.
    """
    targets = class_targets([prediction.expected for prediction in predictions], config)
    if not targets:
        raise ConfigError(
            "evaluation.metrics: classes: the expected answers are not classes; expected 2 to "
            f"{MAX_CLASSES} distinct values, each on two rows on average",
            hint="Remove classes from evaluation.metrics, or set evaluation.fields.",
        )
    expected = [labels_of(prediction.expected, config) for prediction in predictions]
    given = [labels_of(prediction.answer, config) for prediction in predictions]
    values: list[float | None] = []
    for labels, answer in zip(expected, given, strict=True):
        right = [answer.get(name) == labels[name] for name in targets if name in labels]
        values.append(sum(right) / len(right) if right else None)
    return Scored(values, {name: _table(name, expected, given) for name in targets})


def _table(
    name: str, expected: Sequence[Mapping[str, str]], given: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    metrics = require("sklearn.metrics", "train")
    pairs = [
        (labels[name], answer.get(name, MISSING))
        for labels, answer in zip(expected, given, strict=True)
        if name in labels
    ]
    classes = sorted({label for label, _ in pairs})
    # An empty value is a class of its own if rows expect it.
    known = {label: label for label in (*classes, MISSING)}
    known.setdefault("", MISSING)
    truth = [label for label, _ in pairs]
    answers = [known.get(answer, OTHER) for _, answer in pairs]
    columns = [*classes, OTHER, MISSING]
    matrix = metrics.confusion_matrix(truth, answers, labels=columns)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, answers, labels=classes, zero_division=0.0
    )
    was_given = matrix[:, : len(classes)].sum(axis=0)
    return {
        "num_rows": len(pairs),
        "accuracy": sum(a == b for a, b in zip(truth, answers, strict=True)) / len(pairs),
        "macro_f1": float(f1.mean()),
        "macro_recall": float(recall.mean()),
        "classes": {
            label: {
                "precision": float(precision[i]) if was_given[i] else None,
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "num_rows": int(support[i]),
            }
            for i, label in enumerate(classes)
        },
        "confusion": {"columns": columns, "rows": matrix[: len(classes)].tolist()},
    }


def labels_of(answer: str, config: EvaluationConfig) -> dict[str, str]:
    """Return the whole answer, or its fields, as labels: equal values have equal labels."""
    if config.fields is None:
        return {WHOLE: bare_answer(answer)}
    fields = split_fields(answer, config.fields)
    return {name: _label(value, config.fields) for name, value in fields.items()}


def _label(value: Any, form: FieldForm) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1.0 is 1
    if not isinstance(value, str):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    if form == "json" and _is_json(value):
        return json.dumps(value)  # "1" is not 1
    return value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _are_classes(labels: Sequence[str]) -> bool:
    distinct = set(labels)
    return (
        2 <= len(distinct) <= MAX_CLASSES
        and len(labels) >= 2 * len(distinct)
        and all(len(label) <= MAX_CHARACTERS and "\n" not in label for label in distinct)
        and not distinct & {MISSING, OTHER}
    )
