"""Gate `evaluation` of an embedding model: it ranks the right passages higher than the base."""

from __future__ import annotations

import math
from typing import Any

from tuneline.core.errors import ArtifactError
from tuneline.core.ranking import compare_ranks
from tuneline.pipeline.stage import RETRIEVAL
from tuneline.release.gates.finding import CONTRADICTION, Finding, judged, missing
from tuneline.release.proofs import Proofs
from tuneline.release.rows import MIN_RESAMPLED_ROWS, read_lines

SUMMARY_FILE = "retrieval.json"
RANKS_FILE = "retrieval.jsonl"
REQUIRED = "nDCG@10 better than the base's (paired interval at 95 %)"


def judge_retrieval(proofs: Proofs) -> Finding:
    """Compare the ranks of the tuned model with the base's, query by query.

    The figures come from the ranks. The summary's must be the same.
    """
    if RETRIEVAL not in proofs.made:
        return missing(proofs, RETRIEVAL, REQUIRED)
    path = proofs.made[RETRIEVAL].path / RANKS_FILE
    rows = read_lines(path)
    try:
        found = compare_ranks([row["ranks"] for row in rows], [row["base_ranks"] for row in rows])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise ArtifactError(
            f"{path}: does not hold the ranks of queries", hint=proofs.again(RETRIEVAL)
        ) from None
    sources = tuple(proofs.source(RETRIEVAL, file) for file in (SUMMARY_FILE, RANKS_FILE))
    if name := _other(proofs.read(RETRIEVAL, SUMMARY_FILE), found):
        return judged(
            False, REQUIRED, "contradiction",
            f"{RETRIEVAL}: {name} of {SUMMARY_FILE} is not that of the ranks.",
            hint=proofs.again(RETRIEVAL), sources=sources, reasons=[CONTRADICTION],
        )  # fmt: skip
    low, high = found["ndcg_difference_interval"]
    enough = len(rows) >= MIN_RESAMPLED_ROWS
    better = enough and low > 0
    observed = (
        f"{found['ndcg_base']:.4g} → {found['ndcg']:.4g}, difference {low:+.3g} to {high:+.3g}, "
        f"{len(rows)} queries"
    )
    words = f"The tuned model is {'' if better else 'not shown to be '}better: {observed}."
    if not enough:
        words += f" INCONCLUSIVE: an interval needs at least {MIN_RESAMPLED_ROWS} queries."
    return judged(
        better, REQUIRED, observed, words,
        hint="Train longer or on more data, or evaluate more held-out queries.",
        sources=sources, reasons=["worse" if high < 0 else "not-better"],
    )  # fmt: skip


def _other(stated: dict[str, Any], own: dict[str, Any]) -> str:
    """Return the name of the first figure that differs; empty if all are equal."""
    for name, value in own.items():
        mine, theirs = (
            one if isinstance(one, list) else [one] for one in (value, stated.get(name))
        )
        if len(mine) != len(theirs) or not all(
            isinstance(b, int | float) and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
            for a, b in zip(mine, theirs, strict=True)
        ):
            return name
    return ""
