"""The table of the kinds of models agrees with the methods, the artifacts and the server."""

from __future__ import annotations

from typing import get_args

import pytest

from serving.config import POOLING_ROUTES
from serving.rewards import compare_rewards
from training.config.method import METHODS
from training.config.method_options import Makes
from tuneline.core.artifact_kinds import KINDS
from tuneline.pipeline.products.routes import ROUTES
from tuneline.pipeline.products.table import PRODUCTS, SERVED_PROOFS


def test_each_kind_of_model_has_a_row_and_a_method() -> None:
    kinds = set(get_args(Makes))
    assert PRODUCTS.keys() == kinds == {method.makes for method in METHODS.values()}
    assert (
        ROUTES.keys()
        == kinds - {"text"}
        == {name for name, product in PRODUCTS.items() if product.proof is not None}
    )


@pytest.mark.parametrize("kind", sorted(SERVED_PROOFS))
def test_a_proof_is_the_verdict_of_its_artifact(kind: str) -> None:
    proof = SERVED_PROOFS[kind]
    assert KINDS[kind].payload == KINDS[kind].verdict_file == proof.file
    assert POOLING_ROUTES.issuperset({*proof.routes.proven_by, *proof.routes.refused})


def test_the_words_and_figures_of_a_proof_are_of_its_report() -> None:
    found = compare_rewards([1.0, 0.0, 0.5, 1.5], [1.0, 0.0, 0.5, 1.75], limit=0.5)
    proof = SERVED_PROOFS["reward-parity"]
    # A quarter, by the standard deviation of 0, 0.5, 1 and 1.5: the root of 0.3125.
    assert proof.differ(found) == "scores within 0.4 standard deviations, 2 of 2 pairs in one order"
    assert proof.rows(found)[1] == ("pairs in the same order", "2 of 2")
    assert found.keys() >= proof.figures.keys()


@pytest.mark.parametrize(
    ("makes", "opened", "words"),
    [
        ("scores", {"pooling"}, None),
        ("scores", {"score"}, "a reward model: expected pooling or classify, by which its scores "
         "are proven, and no embeddings"),
        ("vectors", {"embeddings", "score"}, None),
        ("vectors", {"embeddings", "classify"}, "an embedding model: expected embeddings or "
         "pooling, by which its vectors are proven, and no classify"),
        ("relevance", {"score"}, None),
        ("relevance", {"score", "pooling"}, "a reranker: expected score, by which its scores are "
         "proven, and no embeddings, pooling or classify"),
    ],
)  # fmt: skip
def test_routes_that_do_not_fit_are_named(
    makes: Makes, opened: set[str], words: str | None
) -> None:
    problem = ROUTES[makes].problem(opened)
    assert problem == (None if words is None else f"serving.routes of {words}")
