"""The scores of a reranker: what a stored proof must hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from serving.relevance import (
    RELEVANCE_FILE,
    TRAINED_FILE,
    compare_relevance,
    recheck_relevance,
)
from tests.unit.serving.test_rewards import made
from tuneline.core.errors import ArtifactError

LISTS: list[dict[str, Any]] = [
    {"query": "q", "passages": ["a", "b"], "token_ids": [[1, 2], [1, 3, 4]], "scores": [1.0, -1.0]},
    {"query": "r", "passages": ["c"], "token_ids": [[5]], "scores": [0.0]},
]


def _answers(*shifts: float) -> list[dict[str, Any]]:
    """Return a server's answers whose scores are shifted."""
    left = iter(shifts or (0.0, 0.0, 0.0))
    return [
        {
            "num_tokens": sum(map(len, one["token_ids"])),
            "scores": (scores := [score + next(left) for score in one["scores"]]),
            "relevance": [1 / (1 + math.exp(-score)) for score in scores],
        }
        for one in LISTS
    ]


def test_a_difference_counts_by_the_spread_of_all_scores() -> None:
    found = compare_relevance(LISTS, _answers(0.0, 0.01, 0.0), 2e-3)
    spread = math.sqrt(2 / 3)
    assert found["max_relative_difference"] == pytest.approx(0.01 / spread)
    assert found["verdict"] == "FAIL"
    assert found["problems"][0].startswith("scores differ by up to 0.012 standard deviations")
    assert compare_relevance(LISTS, _answers(), 2e-3)["verdict"] == "PASS"
    assert compare_relevance(LISTS, _answers(0.0, 0.01, 0.0), 2e-2)["verdict"] == "PASS"


def test_a_server_that_reads_other_tokens_fails() -> None:
    answers = _answers()
    answers[0]["num_tokens"] += 1
    found = compare_relevance(LISTS, answers, 2e-3)
    assert found["verdict"] == "FAIL"
    assert found["problems"] == [
        "the server counts other tokens in 1 of 2 lists: it does not read the pairs as training did"
    ]


def test_a_route_that_reranks_without_the_sigmoid_fails() -> None:
    answers = _answers()
    answers[1]["relevance"] = [0.0]
    found = compare_relevance(LISTS, answers, 2e-3)
    assert "the scores of /rerank differ by up to 0.5 from the sigmoid" in found["problems"][0]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"served": _answers(0.0, 0.5, 0.0)}, "scores differ by up to"),
        ({"served": _answers()[:1]}, "the server scored 1 lists; expected 2"),
        ({"limit": 5.0}, "its limit is 5; expected one of the number formats"),
        ({"num_pairs": 4}, "its figures contradict its scores"),
        ({"served": _answers(0.0, math.nan, 0.0)}, "scores differ by up to inf"),
    ],
)
def test_a_proof_is_judged_again_from_its_answers(
    tmp_path: Path, changes: dict[str, Any], problem: str | None
) -> None:
    lines = "".join(f"{json.dumps(one)}\n" for one in LISTS)
    evaluation = made(tmp_path / "evaluation", "retrieval", TRAINED_FILE, lines)
    stored = {**compare_relevance(LISTS, _answers(), 2e-3), "served": _answers(), **changes}
    proof = made(tmp_path / "proof", "relevance-parity", RELEVANCE_FILE, json.dumps(stored))
    found = recheck_relevance(proof, evaluation)
    assert found == [] if problem is None else problem in found[0]


def test_an_evaluation_without_scores_is_refused(tmp_path: Path) -> None:
    stored = {**compare_relevance(LISTS, _answers(), 2e-3), "served": _answers()}
    proof = made(tmp_path / "proof", "relevance-parity", RELEVANCE_FILE, json.dumps(stored))
    evaluation = made(tmp_path / "evaluation", "retrieval", TRAINED_FILE, "")
    with pytest.raises(ArtifactError, match="has no scores"):
        recheck_relevance(proof, evaluation)
    lines = "".join(f"{json.dumps(one)}\n" for one in LISTS)
    whole = made(tmp_path / "whole", "retrieval", TRAINED_FILE, lines)
    broken = made(tmp_path / "broken", "relevance-parity", RELEVANCE_FILE, "{}")
    with pytest.raises(ArtifactError, match="does not hold the scores"):
        recheck_relevance(broken, whole)
