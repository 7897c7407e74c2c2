"""BM25: the order of passages by the words that they share with a query, which needs no model.

The words are the token ids of the base's tokenizer, so that texts without spaces have words too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

SATURATION, LENGTH = 1.2, 0.75
"""`k1` and `b` of Robertson and Zaragoza, The Probabilistic Relevance Framework (2009)."""


def bm25_scores(
    queries: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Return a score for each candidate of each query.

    A word is rare if few of all candidates have it, with the inverse document frequency of Lucene,
    which is never negative.

    Args:
        queries: The token ids of each query.
        candidates: For each query the token ids of its passages.
    """
    passages = [ids for found in candidates for ids in found]
    mean = math.fsum(map(len, passages)) / len(passages) or 1.0
    having = Counter(token for ids in passages for token in set(ids))

    def score(query: Sequence[int], ids: Sequence[int]) -> float:
        counts = Counter(ids)
        base = SATURATION * (1 - LENGTH + LENGTH * len(ids) / mean)
        parts = [
            math.log1p((len(passages) - having[token] + 0.5) / (having[token] + 0.5))
            * counts[token] * (SATURATION + 1) / (counts[token] + base)
            for token in query
            if counts[token]
        ]  # fmt: skip
        return math.fsum(parts)

    return [
        [score(query, ids) for ids in found]
        for query, found in zip(queries, candidates, strict=True)
    ]
