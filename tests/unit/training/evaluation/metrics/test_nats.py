from __future__ import annotations

import math

import pytest

from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig
from training.evaluation.metrics.nats import score_nats
from training.evaluation.scoring import score


def test_perplexity_weighs_every_token_alike() -> None:
    first, second, third = made([("a", "a"), ("b", "b"), ("c", "c")])
    rows = [
        first.model_copy(update={"nats": 2.0, "num_answer_tokens": 1}),
        second.model_copy(update={"nats": 3.0, "num_answer_tokens": 9}),
        third,
    ]
    scored = score_nats(rows, EvaluationConfig())
    assert scored.values == [2.0, pytest.approx(1 / 3), None]
    assert scored.details["nats_per_token"] == pytest.approx(0.5)
    assert scored.details["perplexity"] == pytest.approx(math.exp(0.5))


def test_losses_that_a_server_does_not_give_are_said_to_be_absent() -> None:
    config = EvaluationConfig(metrics=("nats",))
    _, scores = score(made([("a", "a")]), config, no_losses="absent: the server gives none")
    result = scores.metrics["nats"]
    assert (result.value, result.interval, result.num_rows) == (None, None, 0)
    assert result.note == "absent: the server gives none"
