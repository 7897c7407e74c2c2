"""How often each training row is used: the weights of the sources."""

from __future__ import annotations

import random
from collections.abc import Sequence

from training.data.row import Row


def apply_weights(
    rows: Sequence[Row], weights: Sequence[float], seed: int
) -> tuple[list[Row], int]:
    """Return the rows as often as their source's weight says, in order, and the number left out.

    Of `n` rows with weight `w`, every row is used `floor(w)` times, and a random sample of
    `round((w - floor(w)) * n)` rows once more. Seed and place of the source choose the sample.
    """
    if all(weight == 1 for weight in weights):
        return list(rows), 0
    num_rows = [0] * len(weights)
    for row in rows:
        num_rows[row.source] += 1
    copies = [
        draw_copies(count, weight, f"{seed}/{source}")
        for source, (count, weight) in enumerate(zip(num_rows, weights, strict=True))
    ]
    taken = [iter(drawn) for drawn in copies]
    used = [(row, next(taken[row.source])) for row in rows]
    return [row for row, times in used for _ in range(times)], sum(not n for _, n in used)


def draw_copies(num_rows: int, weight: float, seed: str) -> list[int]:
    """Return how often each of a source's rows is used."""
    copies = [int(weight)] * num_rows
    for index in random.Random(seed).sample(range(num_rows), round(weight % 1 * num_rows)):
        copies[index] += 1
    return copies
