"""Training rows whose prompt is similar to a held-out prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from training.config.checks import NearLeakageCheck
from training.data.checks.check import Check, Hit
from training.data.checks.minhash import candidate_pairs

if TYPE_CHECKING:
    from training.data.checks.whole import Whole


def compare_near_leakage(whole: Whole, config: NearLeakageCheck) -> Iterator[Hit]:
    """Return every training row whose prompt is similar, and not equal, to a held-out prompt."""
    rows, held = whole.kept(False), whole.kept(True)
    if not len(held):
        return
    firsts = [side[np.unique(whole.prompt[side], return_index=True)[1]] for side in (rows, held)]
    pairs = candidate_pairs(whole.prompt_bands, np.sort(np.concatenate(firsts)), whole.heldout)
    pairs = pairs[whole.prompt[pairs[:, 0]] != whole.prompt[pairs[:, 1]]]
    similar = whole.similarities(pairs)[:, 0]
    nearest: dict[int, tuple[float, int]] = {}
    for pair, similarity in zip(pairs, similar.tolist(), strict=True):
        trained, other = pair if whole.heldout[pair[1]] else pair[::-1]
        if similarity >= config.similarity:
            key = int(whole.prompt[trained])
            nearest[key] = max(nearest.get(key, (0.0, 0)), (similarity, int(other)))
    for row in rows:
        if int(whole.prompt[row]) in nearest:
            similarity, other_row = nearest[int(whole.prompt[row])]
            yield Hit(int(row), "similar prompts", other_row, f"similarity {similarity:.2f}")


CHECK = Check(
    "near_leakage",
    "training rows whose prompt is similar to a held-out prompt",
    compare=compare_near_leakage,
    advice="Try: data.checks.near_leakage: fix, which drops the training row.",
)
