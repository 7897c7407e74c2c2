from __future__ import annotations

import pytest

from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig
from training.evaluation.metrics.fields import score_fields
from tuneline.core.errors import ConfigError

LINES = EvaluationConfig(fields="lines")
JSON = EvaluationConfig(fields="json")


def test_precision_and_recall_equal_hand_counted_ones() -> None:
    pairs = [
        ("A: 1\nB: 1", "A: 1\nB: 2"),
        ("A: 1\nB: 1", "A: 1"),
        ("A: 1", "A: 2\nB: 1"),  # B is given and not expected
        ("A: 1", "nothing"),
    ]
    scored = score_fields(made(pairs), LINES)
    assert scored.values == [0.5, 0.5, 0.0, 0.0]
    rates = {name: (r["precision"], r["recall"], r["f1"]) for name, r in scored.details.items()}
    assert rates == {"A": (2 / 3, 0.5, pytest.approx(4 / 7)), "B": (0.0, 0.0, 0.0)}
    assert scored.details["A"]["recall_interval"] == pytest.approx((0.1500, 0.8500), abs=1e-4)


def test_precision_is_absent_if_no_answer_has_the_field() -> None:
    scored = score_fields(made([("A: 1", "x")]), LINES)
    assert scored.details["A"]["precision"] is None


@pytest.mark.parametrize(
    ("expected", "answer", "value"),
    [
        ('{"a": 1}', '{"a": 1.0}', 1.0),
        ('{"a": 1}', '{"a": true}', 0.0),
        ('{"a": "1"}', '{"a": 1}', 0.0),
        ('{"a": {"b": 1, "c": 2}}', '{"a": {"c": 2, "b": 1}}', 1.0),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', 0.0),
        ('{"a": null}', "{}", 0.0),
        ('{"도시": "서울"}', '{"도시": "서울"}', 1.0),
    ],
)
def test_json_fields_compare_values_and_types(expected: str, answer: str, value: float) -> None:
    assert score_fields(made([(expected, answer)]), JSON).values == [value]


def test_fields_without_a_form_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"fields needs evaluation\.fields; found none"):
        score_fields(made([("a", "a")]), EvaluationConfig(metrics=("fields",)))
