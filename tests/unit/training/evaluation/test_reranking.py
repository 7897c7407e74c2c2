"""Lists of passages, their ranks, and the order of words in common."""

from __future__ import annotations

import math

import pytest

from training.data.row import query_row
from training.evaluation.bm25 import bm25_scores
from training.evaluation.reranking import answer_ranks, passage_lists


def test_rows_of_one_query_are_one_list() -> None:
    rows = [
        query_row("q", ["a"], ["b"]),
        query_row("q", ["b", "c"], ["d"]),
        query_row("r", ["a"], []),
    ]
    (found,) = passage_lists(rows)
    assert (found.query, found.passages) == ("q", {"a": True, "b": True, "c": True, "d": False})


@pytest.mark.parametrize(("shared", "expected"), [(False, [1, 5]), (True, [1, 4])])
def test_equal_scores_count_against_the_trained_model(shared: bool, expected: list[int]) -> None:
    answers = [True, False, True, False, False]
    assert answer_ranks(answers, [9.0, 5.0, 2.0, 2.0, 2.0], shared=shared) == expected


def test_the_order_of_words_is_that_of_bm25() -> None:
    """The example is counted by hand: a word in one of three passages, and a word in two."""
    (found,) = bm25_scores([[1, 2]], [[[1, 9], [2, 2, 9, 9], [2, 8, 8]]])
    rare, usual = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)

    def part(weight: float, count: int, length: int) -> float:
        return weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / 3))

    expected = [part(rare, 1, 2), part(usual, 2, 4), part(usual, 1, 3)]
    assert found == pytest.approx(expected, rel=1e-12)
