"""Accuracy and margin of pairs of rewards, by hand."""

from __future__ import annotations

import pytest

from training.evaluation.preferences import preference_figures
from tuneline.core.statistics import wilson_interval


def test_a_pair_is_right_if_the_better_answer_has_more_reward() -> None:
    figures = preference_figures([(1.0, 0.0), (0.5, 0.5), (0.0, 2.0), (3.0, -1.0)])
    assert figures["num_pairs"] == 4
    assert figures["accuracy"] == 0.5  # equal rewards are not right
    assert figures["accuracy_interval"] == wilson_interval(0.5, 4)
    assert figures["margin"] == pytest.approx((1 + 0 - 2 + 4) / 4)
    low, high = figures["margin_interval"]
    assert -2 <= low < figures["margin"] < high <= 4
