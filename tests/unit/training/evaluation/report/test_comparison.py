from __future__ import annotations

import pytest

from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig
from training.evaluation.prediction import Prediction
from training.evaluation.report.comparison import compare_pairs, compare_predictions
from training.evaluation.scoring import score
from tuneline.core.errors import ArtifactError


def _scored(pairs: list[tuple[str, str]]) -> list[Prediction]:
    config = EvaluationConfig(metrics=("exact_match", "rouge_l"))
    return score(made(pairs), config)[0]


def test_a_comparison_equals_hand_counted_figures() -> None:
    # 10 rows: both right 2, only the base 1, only the tuned model 6, neither 1.
    base = _scored([("a", "a")] * 3 + [("a", "b")] * 7)
    tuned = _scored([("a", "a")] * 2 + [("a", "b")] + [("a", "a")] * 6 + [("a", "c")])
    match = compare_predictions(base, tuned).metrics["exact_match"]
    assert (match.base, match.tuned) == (0.3, 0.8)
    assert match.difference == pytest.approx(0.5)
    assert (match.base_only, match.tuned_only) == (1, 6)
    # Two-sided binomial test, 1 of 7: 2 * (1 + 7) / 2**7.
    assert match.mcnemar_p == 0.125
    assert match.interval[0] < 0.5 < match.interval[1]


@pytest.mark.parametrize("pairs", [[("a", "a")] * 12, [("a", "b")] * 12])
def test_equal_answers_are_no_difference(pairs: list[tuple[str, str]]) -> None:
    rows = _scored(pairs)
    comparison = compare_predictions(rows, rows)
    match, rouge = comparison.metrics["exact_match"], comparison.metrics["rouge_l"]
    assert (match.difference, match.mcnemar_p, match.better) == (0, 1.0, "neither")
    assert match.interval[0] < 0 < match.interval[1]
    # Values of 0 and 1 only are shares, whatever metric they are of.
    assert rouge.model_dump(exclude={"title"}) == match.model_dump(exclude={"title"})


@pytest.mark.parametrize(("higher_is_better", "better"), [(True, "tuned"), (False, "base")])
def test_a_lower_loss_is_better(higher_is_better: bool, better: str) -> None:
    pairs = [(1.0, 2.0 + i / 10) for i in range(10)]
    found = compare_pairs(pairs, "nats", higher_is_better)
    assert found.better == better
    assert found.interval[0] > 0


@pytest.mark.parametrize("value", [0.9, 1.0])
@pytest.mark.parametrize(("num_rows", "better"), [(1, "neither"), (5, "neither"), (6, "tuned")])
def test_few_rows_show_nobody_to_be_better(num_rows: int, better: str, value: float) -> None:
    # Newcombe's interval of two rows, both answered correctly by one model, excludes zero already.
    found = compare_pairs([(0.0, value)] * num_rows, "ROUGE-L")
    assert found.better == better
    assert (found.mcnemar_p is None) == (value < 1)


def test_only_rows_with_both_values_are_compared() -> None:
    base, tuned = _scored([("a", "a")] * 4), _scored([("a", "a")] * 4)
    base[1] = base[1].model_copy(update={"scores": {"exact_match": None, "rouge_l": 1.0}})
    comparison = compare_predictions(base, tuned)
    assert comparison.metrics["exact_match"].num_rows == 3
    assert comparison.metrics["rouge_l"].num_rows == 4


@pytest.mark.parametrize(
    "other", [[("a", "a")], [("a", "a"), ("c", "a")], [("b", "a"), ("a", "a")]]
)
def test_evaluations_of_other_rows_are_refused(other: list[tuple[str, str]]) -> None:
    with pytest.raises(ArtifactError, match="are about different rows") as caught:
        compare_predictions(_scored([("a", "a"), ("b", "a")]), _scored(other))
    assert caught.value.exit_code == 3
