"""A reward model: scores of conversations."""

from __future__ import annotations

from functools import partial

import serving
from tuneline.core.dataset import heldout_conversations
from tuneline.pipeline.products.product import Found, Product, ServedProof, compare_numbers
from tuneline.pipeline.products.routes import ROUTES
from tuneline.pipeline.stage import PREFERENCES


def _rows(found: Found) -> list[tuple[str, str]]:
    return [
        ("largest difference of a score", f"{found['max_relative_difference']:.2g} standard "
         f"deviations of all scores; at most {found['limit']:g} is allowed"),
        ("pairs in the same order", f"{found['num_equal_orders']} of {found['num_pairs']}"),
    ]  # fmt: skip


PROOF = ServedProof(
    routes=ROUTES["scores"],
    kind="reward-parity",
    file="rewards.json",
    prove=lambda *given, **options: serving.prove_rewards(*given, **options),
    compare=lambda *given, **options: serving.compare_served_rewards(*given, **options),
    recheck=lambda *given: serving.recheck_rewards(*given),
    options=lambda config: {"route": config.score_route},
    rows=_rows,
    figures={
        "num_equal_orders": ("pairs in the same order", ""),
        "max_relative_difference": ("largest difference of a score", "standard deviations"),
    },
    version=2,
)
SCORES = Product(
    known_by=PREFERENCES,
    load_prompts=lambda _run, dataset: heldout_conversations(dataset),
    compare=partial(compare_numbers, PROOF),
    proof=PROOF,
)
