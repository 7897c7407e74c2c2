"""A reranker: a score of a query with a passage."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import serving
from tuneline.core.artifact import Artifact
from tuneline.core.dataset import heldout_lists
from tuneline.pipeline.products.product import Found, Product, ServedProof, compare_numbers
from tuneline.pipeline.products.ranked import ranked_stage
from tuneline.pipeline.products.routes import ROUTES
from tuneline.pipeline.run_config import RunConfig
from tuneline.pipeline.stage import ADAPTER, DATASET, RETRIEVAL, Line, Made, Stage


def _judge(line: Line, made: Made, out: Path) -> Artifact:
    from training import evaluate_reranking

    config = line.run.config
    return evaluate_reranking(
        config.evaluation, config.training, made[DATASET], line.base, made[ADAPTER], out
    )


def _judged(config: RunConfig, label: str) -> list[Stage]:
    return [ranked_stage(config, label, _judge)]


def _rows(found: Found) -> list[tuple[str, str]]:
    return [
        ("queries with passages", f"{found['num_pairs']} pairs of {found['num_lists']} queries"),
        ("largest difference of a score", f"{found['max_relative_difference']:.2g} standard "
         f"deviations of all scores; at most {found['limit']:g} is allowed"),
        ("lists with the trained count of tokens", f"{found['num_equal_token_counts']} of "
         f"{found['num_lists']}"),
    ]  # fmt: skip


PROOF = ServedProof(
    routes=ROUTES["relevance"],
    kind="relevance-parity",
    file="relevance.json",
    prove=lambda *given, **options: serving.prove_relevance(*given, **options),
    compare=lambda *given, **options: serving.compare_served_relevance(*given, **options),
    recheck=lambda *given: serving.recheck_relevance(*given),
    options=lambda _config: {},
    rows=_rows,
    figures={"max_relative_difference": ("largest difference of a score", "standard deviations")},
)
RELEVANCE = Product(
    known_by=RETRIEVAL,
    load_prompts=lambda _run, dataset: heldout_lists(dataset),
    compare=partial(compare_numbers, PROOF),
    proof=PROOF,
    judged=_judged,
)
