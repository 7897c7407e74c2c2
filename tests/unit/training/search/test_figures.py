"""The figures that are told before a training are those that its evaluations write."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest

from tests.unit.training.data.checks.made import clean_rows
from training.config import EvaluationConfig, TrainingConfig
from training.evaluation.forgetting.items import suite_items
from training.evaluation.forgetting.judging import judge_forgetting
from training.evaluation.prediction import predict
from training.evaluation.report.comparison import compare_predictions
from training.evaluation.scoring import score
from training.search.figures import (
    comparison_figures,
    evaluation_figures,
    forgetting_figures,
    preference_figures,
    training_figures,
)


def _numbers(values: Mapping[str, Any]) -> set[str]:
    found = set()
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}" for inner in _numbers(value)}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.add(name)
    return found


CONFIGS = [{"fields": "lines"}, {}, {"metrics": ["chrf"]}]


@pytest.mark.parametrize("values", CONFIGS, ids=["fields", "free text", "chosen"])
def test_an_evaluation_has_the_figures_that_were_told(values: dict[str, Any]) -> None:
    config = EvaluationConfig.model_validate(values)
    rows = clean_rows(12)
    answers = [row.answer for row in rows]
    right = [predict(row, row.answer, "stop", ()) for row in rows]
    wrong = [predict(row, "Category: none", "stop", ()) for row in rows]
    (tuned, scores), (base, _) = score(right, config), score(wrong, config)
    written = scores.model_dump(mode="json")
    for metric in written["metrics"].values():
        del metric["details"]
    told = evaluation_figures(config, answers)
    numbers = _numbers(written)
    assert len(numbers) > 6
    assert all(any(fnmatchcase(name, known) for known in told) for name in numbers)
    absent = {"metrics.nats.value", "wall_s"}  # the rows have no losses here
    assert {name for name in told if "*" not in name} - numbers <= absent

    compared = _numbers(compare_predictions(base, tuned).model_dump(mode="json"))
    assert compared and compared <= set(comparison_figures(config, answers))


@pytest.mark.parametrize(
    ("values", "name", "is_told"),
    [
        ({}, "eval_loss", True),
        ({}, "best_eval_loss", False),
        ({"load_best_model_at_end": True}, "best_eval_loss", True),
        ({"method": {"type": "dpo"}}, "eval_margin", True),
        ({"method": {"type": "grpo", "reward_funcs": "r.py:f"}}, "eval_loss", False),
        ({"method": {"type": "grpo", "reward_funcs": "r.py:f"}}, "eval_reward", True),
    ],
)
def test_the_figures_of_a_training_are_those_of_its_method(
    values: dict[str, Any], name: str, is_told: bool
) -> None:
    assert (name in training_figures(TrainingConfig.model_validate(values))) == is_told


def test_the_forgetting_suite_has_the_figures_that_were_told() -> None:
    items = suite_items()
    passed = [True] * len(items)
    report = judge_forgetting(items, passed, passed).model_dump(mode="json")
    assert set(forgetting_figures()) == _numbers(report) | {"wall_s"}


@pytest.mark.parametrize(
    ("method", "name"), [("dpo", "likelier"), ("reward", "accuracy"), ("grpo", "reward_difference")]
)
def test_the_figures_of_preferences_are_those_of_the_method(method: str, name: str) -> None:
    options = {"type": method, **({"reward_funcs": "r.py:f"} if method == "grpo" else {})}
    training = TrainingConfig.model_validate({"method": options})
    assert name in preference_figures(EvaluationConfig(), training)
