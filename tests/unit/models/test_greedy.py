"""Greedy decoding checked against a draft, on a form whose every answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from tuneline.models.greedy import greedy_answer

VOCABULARY = 10
STOP = 9


class Counter:
    """After token t it says t + 1 with probability 0.9; it counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, token_ids: list[int], last: int) -> torch.Tensor:
        self.calls += 1
        rows = []
        for token in token_ids[-last:]:
            row = torch.full((VOCABULARY,), math.log(0.1 / (VOCABULARY - 1)))
            row[(token + 1) % VOCABULARY] = math.log(0.9)
            rows.append(row)
        return torch.stack(rows)


@pytest.mark.parametrize(
    ("draft", "calls"),
    [
        ([4, 5, 6, 7, 8, 9], 1),  # right all along: one pass
        ([4, 5, 6], 4),  # right, but it ends too early
        ([4, 5, 0, 0, 0, 0], 4),  # wrong in the middle
        ([0], 6),  # wrong at once
        ([4, 5, 6, 7, 8, 9, 0, 1], 1),  # goes on past the stop token
    ],
)
def test_the_answer_does_not_depend_on_the_draft(draft: list[int], calls: int) -> None:
    score = Counter()
    token_ids, logprobs, top = greedy_answer(
        score, [1, 2, 3], draft=draft, stop_ids=frozenset([STOP]), max_new_tokens=20, num_top=3
    )
    assert token_ids == [4, 5, 6, 7, 8, 9]
    assert logprobs == pytest.approx([math.log(0.9)] * 6, abs=1e-6)
    assert [len(row) for row in top] == [3] * 6
    assert all(token in row for token, row in zip(token_ids, top, strict=True))
    assert score.calls == calls


@pytest.mark.parametrize("draft", [[4, 5, 6, 7], [4, 5, 6, 7, 8, 9], [0]])
def test_it_ends_at_the_most_tokens(draft: list[int]) -> None:
    token_ids, logprobs, top = greedy_answer(
        Counter(), [3], draft=draft, stop_ids=frozenset(), max_new_tokens=4, num_top=1
    )
    assert token_ids == [4, 5, 6, 7]
    assert len(logprobs) == len(top) == 4


def test_the_chosen_token_is_listed_even_where_others_are_as_likely() -> None:
    def score(token_ids: list[int], last: int) -> torch.Tensor:
        assert len(token_ids) >= last
        row = torch.zeros(VOCABULARY)
        row[[2, 5, 7]] = 1.0  # argmax takes the first; topk takes any
        return row.repeat(last, 1)

    token_ids, logprobs, top = greedy_answer(
        score, [1], stop_ids=frozenset(), max_new_tokens=3, num_top=1
    )
    assert token_ids == [2, 2, 2]
    for logprob, row in zip(logprobs, top, strict=True):
        assert next(iter(row.items())) == (2, logprob)
