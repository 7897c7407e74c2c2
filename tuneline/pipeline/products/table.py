"""The table of the kinds of models."""

from __future__ import annotations

from training.config.method_options import Makes
from tuneline.core.artifact import Artifact
from tuneline.core.messages import ChatPrompt
from tuneline.pipeline.products.product import Product, ServedProof
from tuneline.pipeline.products.relevance import RELEVANCE
from tuneline.pipeline.products.scores import SCORES
from tuneline.pipeline.products.text import TEXT
from tuneline.pipeline.products.vectors import VECTORS
from tuneline.pipeline.run_config import Run, RunConfig

PRODUCTS: dict[Makes, Product] = {
    "text": TEXT,
    "scores": SCORES,
    "vectors": VECTORS,
    "relevance": RELEVANCE,
}
SERVED_PROOFS: dict[str, ServedProof] = {
    product.proof.kind: product.proof for product in PRODUCTS.values() if product.proof is not None
}
"""The proofs of scores and vectors, by the kind of their artifact."""


def product_of(config: RunConfig) -> Product:
    """Return the kind of model that a run makes."""
    return PRODUCTS[config.training.method.makes]


def load_prompts(run: Run, dataset: Artifact) -> list[ChatPrompt]:
    """Return what the run's load test sends, from the held-out rows.

    Raises:
        DataError: No row fits.
    """
    return product_of(run.config).load_prompts(run, dataset)
