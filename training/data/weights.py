"""How often each training row is used: the weights of the sources."""

from __future__ import annotations

import random
from collections.abc import Sequence


def copies_of(sources: Sequence[int], weights: Sequence[float], seed: int) -> list[int]:
    """Return how often each training row is used; `sources` has the place of each row's source.

    Of `n` rows with weight `w`, every row is used `floor(w)` times, and a random sample of
    `round((w - floor(w)) * n)` rows once more. Seed and place of the source choose the sample.
    """
    num_rows = [0] * len(weights)
    for source in sources:
        num_rows[source] += 1
    taken = [
        iter(draw_copies(count, weight, f"{seed}/{source}"))
        for source, (count, weight) in enumerate(zip(num_rows, weights, strict=True))
    ]
    return [next(taken[source]) for source in sources]


def draw_copies(num_rows: int, weight: float, seed: str) -> list[int]:
    """Return how often each of a source's rows is used."""
    copies = [int(weight)] * num_rows
    for index in random.Random(seed).sample(range(num_rows), round(weight % 1 * num_rows)):
        copies[index] += 1
    return copies
