"""An embedding model: a vector of a text."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import serving
from tuneline.core.artifact import Artifact
from tuneline.core.dataset import heldout_queries
from tuneline.core.messages import ChatPrompt
from tuneline.pipeline.products.product import Found, Product, ServedProof, compare_numbers
from tuneline.pipeline.products.ranked import ranked_stage
from tuneline.pipeline.products.routes import ROUTES
from tuneline.pipeline.run_config import Run, RunConfig, resolve_base
from tuneline.pipeline.stage import ADAPTER, DATASET, RETRIEVAL, Line, Made, Stage


def _judge(line: Line, made: Made, out: Path) -> Artifact:
    from training import evaluate_retrieval

    config = line.run.config
    return evaluate_retrieval(
        config.evaluation, config.training, made[DATASET], line.base, made[ADAPTER], out
    )


def _judged(config: RunConfig, label: str) -> list[Stage]:
    return [ranked_stage(config, label, _judge)]


def _queries(run: Run, dataset: Artifact) -> list[ChatPrompt]:
    before = run.config.training.method.prompts(resolve_base(run, download=False).path)["query"]
    return heldout_queries(dataset, before)


def _rows(found: Found) -> list[tuple[str, str]]:
    rows = [("texts", str(found["num_texts"])), ("dimensions", str(found["dimensions"]))]
    if found["max_relative_difference"] is not None:
        rows += [
            ("largest difference of a vector", f"{found['max_relative_difference']:.2g} of its "
             f"length; at most {found['limit']:g} is allowed"),
            ("least cosine", f"{found['min_cosine']:.6f}"),
        ]  # fmt: skip
    return rows


PROOF = ServedProof(
    routes=ROUTES["vectors"],
    kind="trained-vector-parity",
    file="vectors.json",
    prove=lambda *given, **options: serving.prove_trained_vectors(*given, **options),
    compare=lambda *given, **options: serving.compare_trained_vectors(*given, **options),
    recheck=lambda *given: serving.recheck_trained_vectors(*given),
    options=lambda config: {"route": config.vector_route},
    rows=_rows,
    figures={
        "min_cosine": ("least cosine of a vector and the trained model's", ""),
        "max_relative_difference": ("largest difference of a vector", "of its length"),
    },
)
VECTORS = Product(
    known_by=RETRIEVAL,
    load_prompts=_queries,
    compare=partial(compare_numbers, PROOF),
    proof=PROOF,
    judged=_judged,
)
