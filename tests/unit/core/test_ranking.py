"""Figures of rankings, against scikit-learn's."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import ndcg_score

from tuneline.core.ranking import compare_ranks, ndcg, recall, reciprocal_rank


@pytest.mark.parametrize("seed", range(8))
def test_the_gain_is_that_of_scikit_learn(seed: int) -> None:
    draw = random.Random(seed)
    ranks = sorted(draw.sample(range(1, 31), k=draw.randint(1, 14)))
    relevance = [float(place in ranks) for place in range(1, 31)]
    scores = [float(-place) for place in range(1, 31)]
    assert ndcg(ranks) == pytest.approx(ndcg_score([relevance], [scores], k=10), abs=1e-12)


@pytest.mark.parametrize(
    ("ranks", "reciprocal", "share"),
    [([1], 1.0, 1.0), ([4, 30], 0.25, 0.5), ([11], 0.0, 0.0), ([10, 11, 12], 0.1, 1 / 3)],
)
def test_places_beyond_the_tenth_do_not_count(
    ranks: list[int], reciprocal: float, share: float
) -> None:
    assert reciprocal_rank(ranks) == reciprocal
    assert recall(ranks) == pytest.approx(share)


def test_two_models_are_compared_query_by_query() -> None:
    found = compare_ranks([[1]] * 40, [[2]] * 40)
    better = 1 - 0.6309297535714575  # 1 / log2(3)
    assert found["num_queries"] == 40
    assert (found["ndcg"], found["mrr_base"], found["recall"]) == (1.0, 0.5, 1.0)
    assert found["ndcg_difference"] == pytest.approx(better)
    assert found["ndcg_difference_interval"] == pytest.approx([better, better])
