from __future__ import annotations

import pytest

from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig
from training.evaluation.metrics.classes import MISSING, OTHER, class_targets, score_classes
from training.evaluation.metrics.fields import score_fields
from tuneline.core.errors import ConfigError

LINES = EvaluationConfig(fields="lines")
PAIRS = [
    ("cat", "cat"),
    ("cat", "cat"),
    ("cat", "dog"),
    ("cat", "bird"),  # not an expected class
    ("dog", "dog"),
    ("dog", "cat"),
    ("eel", ""),
    ("eel", "<think>eel</think>\ncat"),
]


def test_rates_and_confusion_equal_hand_counted_ones() -> None:
    scored = score_classes(made(PAIRS), EvaluationConfig())
    table = scored.details["answer"]
    assert scored.values == [1, 1, 0, 0, 1, 0, 0, 0]
    assert table["accuracy"] == 3 / 8
    assert table["confusion"] == {
        "columns": ["cat", "dog", "eel", OTHER, MISSING],
        "rows": [[2, 1, 0, 1, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 1]],
    }
    # cat: 2 right of 4 given and 4 expected; dog: 1 of 2 and 2; eel is never given.
    assert table["classes"] == {
        "cat": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "num_rows": 4},
        "dog": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "num_rows": 2},
        "eel": {"precision": None, "recall": 0.0, "f1": 0.0, "num_rows": 2},
    }
    assert table["macro_f1"] == pytest.approx(1 / 3)


def test_each_field_with_few_values_is_a_target() -> None:
    answers = [f"Kind: {'ab'[i % 2]}\nNote: text number {i}" for i in range(6)]
    assert class_targets(answers, LINES) == ["Kind"]
    scored = score_classes(made([(text, text) for text in answers]), LINES)
    assert scored.values == [1.0] * 6
    assert list(scored.details) == ["Kind"]


@pytest.mark.parametrize(
    ("answers", "targets"),
    [
        (["yes", "no", "yes", "no"], ["answer"]),
        (["yes"] * 4, []),  # one class
        (["a", "b", "c"], []),  # every answer once
        (["x" * 81, "y"] * 2, []),  # too long for a class
        (["a\nb", "c"] * 2, []),
        ([str(i % 51) for i in range(200)], []),  # 51 values
        ([str(i % 50) for i in range(200)], ["answer"]),
        ([MISSING, "b"] * 2, []),  # the name of a column
    ],
)
def test_answers_are_classes_if_their_values_repeat(answers: list[str], targets: list[str]) -> None:
    assert class_targets(answers, EvaluationConfig()) == targets


def test_answers_that_are_not_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="the expected answers are not classes") as caught:
        score_classes(made([("a", "a")]), EvaluationConfig())
    assert caught.value.exit_code == 2


def test_every_row_is_counted_once_in_a_confusion() -> None:
    table = score_classes(made(PAIRS), EvaluationConfig()).details["answer"]
    assert sum(map(sum, table["confusion"]["rows"])) == table["num_rows"] == len(PAIRS)


def test_an_empty_value_is_a_class_if_rows_expect_it() -> None:
    pairs = [("Kind: a\nNote:", "Kind: a\nNote:"), ("Kind: b\nNote: late", "Kind:")] * 3
    scored = score_classes(made(pairs), LINES)
    assert scored.values == [1.0, 0.0] * 3
    assert scored.details["Note"]["confusion"] == {
        "columns": ["", "late", OTHER, MISSING], "rows": [[3, 0, 0, 0], [0, 0, 0, 3]],
    }  # fmt: skip
    assert scored.details["Kind"]["confusion"]["rows"] == [[3, 0, 0, 0], [0, 0, 0, 3]]


def test_labels_of_json_tell_types_apart_as_fields_do() -> None:
    pairs = [('{"n": 1}', '{"n": 1.0}'), ('{"n": 2}', '{"n": "2"}'), ('{"n": 1}', '{"n": true}')]
    pairs += [('{"n": 2}', '{"n": 2}')]
    rows, config = made(pairs), EvaluationConfig(fields="json")
    assert score_classes(rows, config).values == score_fields(rows, config).values == [1, 0, 0, 1]
