"""Figures of rankings: the ranks of the passages that answer a query.

nDCG@10 is that of binary relevance (Järvelin and Kekäläinen, 2002).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tuneline.core.statistics import bootstrap_interval

DEPTH = 10
"""Places that count."""


def compare_ranks(
    ranks: Sequence[Sequence[float]], base_ranks: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Return the means over queries of two models, and the paired interval of the nDCG at 95 %.

    Args:
        ranks: For each query the ranks of its answers, from 1, by the trained model. A rank between
            two places is that of passages that share them.
        base_ranks: The same by the base.
    """
    figures: dict[str, Any] = {"num_queries": len(ranks)}
    for name, measure in (("ndcg", ndcg), ("mrr", reciprocal_rank), ("recall", recall)):
        for suffix, found in (("", ranks), ("_base", base_ranks)):
            figures[f"{name}{suffix}"] = math.fsum(map(measure, found)) / len(found)
    differences = [ndcg(one) - ndcg(other) for one, other in zip(ranks, base_ranks, strict=True)]
    return {
        **figures,
        "ndcg_difference": math.fsum(differences) / len(differences),
        "ndcg_difference_interval": list(bootstrap_interval(differences)),
    }


def rank_figures(ranks: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the means over queries of one model, and the interval of its nDCG at 95 %."""
    means = {
        name: math.fsum(map(measure, ranks)) / len(ranks)
        for name, measure in (("ndcg", ndcg), ("mrr", reciprocal_rank), ("recall", recall))
    }
    interval = list(bootstrap_interval([ndcg(one) for one in ranks]))
    return {"num_queries": len(ranks), **means, "ndcg_interval": interval}


def ndcg(ranks: Sequence[float]) -> float:
    """Return nDCG@10 of a query whose answers have these ranks."""
    gain = math.fsum(1 / math.log2(rank + 1) for rank in ranks if rank <= DEPTH)
    ideal = math.fsum(1 / math.log2(place + 2) for place in range(min(len(ranks), DEPTH)))
    return gain / ideal


def reciprocal_rank(ranks: Sequence[float]) -> float:
    """Return 1 / rank of the first answer; 0 beyond the tenth place."""
    return 1 / min(ranks) if min(ranks) <= DEPTH else 0.0


def recall(ranks: Sequence[float]) -> float:
    """Return the share of the answers within the first ten places."""
    return sum(rank <= DEPTH for rank in ranks) / len(ranks)
