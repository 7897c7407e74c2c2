"""Precision, recall and F1 of each class, and confusion matrices.

A whole answer is a class if the data has few distinct answers; so is the value of a field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from training.config import EvaluationConfig
from training.evaluation.answer_text import bare_answer, split_fields
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction
from tuneline.core.environment import require
from tuneline.core.errors import ConfigError

MAX_CLASSES = 50
"""Distinct values above which a table of classes helps nobody."""
MAX_CHARACTERS = 80
OTHER = "(another)"
"""A value that is not one of the expected classes."""
MISSING = "(missing)"
"""The answer lacks the field, or is empty."""
WHOLE = "answer"
"""The name of the whole answer, where it is the class."""


def class_targets(expected: Sequence[str], config: EvaluationConfig) -> list[str]:
    """Return the names of the fields whose values are classes, or `answer`; empty if none is."""
    columns: dict[str, list[str]] = {}
    for answer in expected:
        for name, label in _labels(answer, config).items():
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
    expected = [_labels(prediction.expected, config) for prediction in predictions]
    given = [_labels(prediction.answer, config) for prediction in predictions]
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
        (labels[name], answer.get(name) or MISSING)
        for labels, answer in zip(expected, given, strict=True)
        if name in labels
    ]
    classes = sorted({label for label, _ in pairs})
    known = {*classes, MISSING}
    truth = [label for label, _ in pairs]
    answers = [answer if answer in known else OTHER for _, answer in pairs]
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


def _labels(answer: str, config: EvaluationConfig) -> dict[str, str]:
    if config.fields is None:
        return {WHOLE: bare_answer(answer)}
    fields = split_fields(answer, config.fields)
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in fields.items()
    }


def _are_classes(labels: Sequence[str]) -> bool:
    distinct = set(labels)
    return (
        2 <= len(distinct) <= MAX_CLASSES
        and len(labels) >= 2 * len(distinct)
        and all(len(label) <= MAX_CHARACTERS and "\n" not in label for label in distinct)
        and not distinct & {MISSING, OTHER}
    )
