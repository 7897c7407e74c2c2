"""The steps of speculative decoding, counted by hand."""

from __future__ import annotations

import random

import pytest

from training.evaluation.acceptance import acceptance_figures, num_steps


@pytest.mark.parametrize(
    ("right", "num_drafted", "steps"),
    [
        # No draft is right: each step gives one token.
        ([False] * 5, 3, 5),
        # Drafts 0, 1, 2 and the model's own 3; then 4, 5 and an end.
        ([True] * 6, 3, 2),
        ([True] * 8, 3, 2),
        ([True] * 9, 3, 3),
        # 0 right, 1 wrong and replaced; 2 wrong; 3, 4 right and 5 by the model.
        ([True, False, False, True, True, True], 2, 3),
        # With one draft: 0 with 1; 2; 3 with 4; 5.
        ([True, False, False, True, True, True], 1, 4),
        ([], 4, 0),
    ],
)
def test_steps_take_drafts_up_to_the_first_wrong_one(
    right: list[bool], num_drafted: int, steps: int
) -> None:
    assert num_steps(right, num_drafted) == steps


def test_steps_are_those_of_a_simulated_server() -> None:
    draw = random.Random(7)
    for _ in range(200):
        right = [draw.random() < 0.7 for _ in range(draw.randrange(1, 40))]
        num_drafted = draw.randrange(1, 9)
        written, steps = 0, 0
        while written < len(right):
            window = right[written : written + num_drafted]
            accepted = window.index(False) if False in window else len(window)
            written += accepted + 1
            steps += 1
        assert num_steps(right, num_drafted) == steps, (right, num_drafted)


def test_figures_are_of_all_tokens() -> None:
    figures = acceptance_figures([[True, True, True, False], [False, False]])
    assert (figures["num_answers"], figures["num_tokens"]) == (2, 6)
    assert figures["share_right"] == pytest.approx(0.5)
    one, two = figures["drafted"][:2]
    # One drafted: 2 + 2 tokens, then two steps of one. Two drafted: 3 tokens, 1, 1 and 1.
    assert (one["num_drafted"], one["tokens_per_step"]) == (1, pytest.approx(6 / 4))
    assert (two["num_drafted"], two["tokens_per_step"]) == (2, pytest.approx(6 / 4))
    assert one["most_cost"] == pytest.approx(0.5) and two["most_cost"] == pytest.approx(0.25)
