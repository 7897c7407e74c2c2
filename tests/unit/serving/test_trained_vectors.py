"""The vectors of an embedding model: what a stored proof must hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from serving.trained_vectors import (
    TRAINED_FILE,
    VECTORS_FILE,
    compare_with_trained,
    recheck_trained_vectors,
)
from tests.unit.serving.test_rewards import made
from tuneline.core.errors import ArtifactError

TRAINED = [[1.0, 0.0], [0.6, 0.8]]


def test_a_distance_counts_by_the_length_of_the_vector() -> None:
    found = compare_with_trained([[2.0, 0.0], [0.0, 1.0]], [[2.0, 0.002], [0.0, 1.0]], 2e-4)
    assert found["max_relative_difference"] == pytest.approx(0.001)
    assert found["min_cosine"] == pytest.approx(math.cos(0.001), abs=1e-9)
    assert found["verdict"] == "FAIL" and "vectors differ by up to 0.001" in found["problems"][0]
    assert compare_with_trained(TRAINED, TRAINED, 2e-4)["verdict"] == "PASS"


@pytest.mark.parametrize(
    ("served", "problem"),
    [
        ([[1.0], [1.0]], "a vector has 1 dimensions; expected 2"),
        ([[math.nan, 0.0], [0.6, 0.8]], "a vector has a value that is not a number"),
    ],
)
def test_vectors_that_cannot_be_compared_fail(served: list[list[float]], problem: str) -> None:
    found = compare_with_trained(TRAINED, served, 2e-4)
    assert (found["verdict"], found["problems"]) == ("FAIL", [problem])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"vectors": [[1.0, 0.0], [0.8, 0.6]]}, "vectors differ by up to"),
        ({"vectors": [[1.0, 0.0]]}, "the server gave 1 vectors; expected 2"),
        ({"limit": 5.0}, "its limit is 5; expected one of the number formats"),
        ({"min_cosine": 0.5}, "its figures contradict its vectors"),
    ],
)
def test_a_proof_is_judged_again_from_its_vectors(
    tmp_path: Path, changes: dict[str, Any], problem: str | None
) -> None:
    rows = [{"text": f"text {at}", "vector": one} for at, one in enumerate(TRAINED)]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    evaluation = made(tmp_path / "evaluation", "retrieval", TRAINED_FILE, lines)
    stored = {**compare_with_trained(TRAINED, TRAINED, 2e-4), "vectors": TRAINED, **changes}
    proof = made(tmp_path / "proof", "trained-vector-parity", VECTORS_FILE, json.dumps(stored))
    found = recheck_trained_vectors(proof, evaluation)
    assert found == [] if problem is None else problem in found[0]


def test_an_evaluation_without_vectors_is_refused(tmp_path: Path) -> None:
    stored = {**compare_with_trained(TRAINED, TRAINED, 2e-4), "vectors": TRAINED}
    proof = made(tmp_path / "proof", "trained-vector-parity", VECTORS_FILE, json.dumps(stored))
    evaluation = made(tmp_path / "evaluation", "retrieval", TRAINED_FILE, "")
    with pytest.raises(ArtifactError, match="has no vectors"):
        recheck_trained_vectors(proof, evaluation)
    broken = made(tmp_path / "broken", "trained-vector-parity", VECTORS_FILE, "{}")
    with pytest.raises(ArtifactError, match="does not hold the vectors"):
        recheck_trained_vectors(broken, evaluation)
