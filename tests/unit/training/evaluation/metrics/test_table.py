from __future__ import annotations

import pytest

from training.config import EvaluationConfig, JudgeConfig
from training.config.evaluation import MetricName
from training.evaluation.metrics.table import METRICS, choose_metrics

CLASSES = ["yes", "no"] * 3
TEXTS = ["A first answer.", "Another one."]
LINES = ["Kind: a\nNote: one", "Kind: b\nNote: two"] * 2
JUDGE = JudgeConfig(url="http://127.0.0.1:1/v1", model="m")


@pytest.mark.parametrize(
    ("config", "expected", "names"),
    [
        (EvaluationConfig(), CLASSES, ["exact_match", "classes"]),
        (EvaluationConfig(), TEXTS, ["exact_match", "chrf", "rouge_l", "nats"]),
        (EvaluationConfig(fields="lines"), LINES, ["exact_match", "fields", "classes"]),
        (EvaluationConfig(fields="json"), ['{"a": 1}'], ["exact_match", "fields", "json_schema"]),
        (EvaluationConfig(python="m.py:f", judge=JUDGE), CLASSES,
         ["exact_match", "classes", "python", "judge"]),
        (EvaluationConfig(metrics=("rouge_l", "chrf")), CLASSES,
         ["exact_match", "chrf", "rouge_l"]),
        (EvaluationConfig(metrics=()), TEXTS, ["exact_match"]),
    ],
)  # fmt: skip
def test_the_data_chooses_the_metrics(
    config: EvaluationConfig, expected: list[str], names: list[str]
) -> None:
    assert choose_metrics(config, expected) == names


def test_every_metric_that_a_run_can_name_has_a_row() -> None:
    assert set(METRICS) == set(MetricName.__args__)  # type: ignore[attr-defined]
