"""Training rows whose prompt is similar to a held-out prompt, or that answer its question.

A prompt is compared whole. So a second comparison looks at the question only: the turns before it
may differ. Where they decide the answer, a question has several answers in the data, and it is left
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from training.config.checks import NearLeakageCheck
from training.data.checks.check import Check, Hit
from training.data.checks.leakage import pairs_by_key
from training.data.checks.minhash import candidate_pairs

if TYPE_CHECKING:
    from training.data.checks.whole import Whole


def compare_near_leakage(whole: Whole, config: NearLeakageCheck) -> Iterator[Hit]:
    """Return every training row whose prompt is similar, and not equal, to a held-out prompt, or
    that gives a held-out answer to its question."""
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
    for row, other in _answered(whole, rows, held).items():
        is_near = int(whole.prompt[row]) in nearest
        if not is_near and whole.prompt[row] != whole.prompt[other]:
            yield Hit(row, "equal question and answer", other)


def _answered(
    whole: Whole, rows: npt.NDArray[np.int64], held: npt.NDArray[np.int64]
) -> dict[int, int]:
    """Return the training rows that answer the question of a held-out row as that row does."""
    owners = whole.exchanges[:, 0].astype(np.int64)
    questions, answers = whole.exchanges[:, 1], whole.exchanges[:, 2]
    pairs = questions * np.uint64(0x9E3779B97F4A7C15) ^ answers
    distinct = np.unique(pairs, return_index=True)[1]
    asked, num_answers = np.unique(questions[distinct], return_counts=True)
    is_decided = ~np.isin(questions, asked[num_answers > 1])
    # The first entry of a row is its own question, after all that was said before it.
    own = np.unique(owners, return_index=True)[1]
    own = own[np.isin(owners[own], held) & is_decided[own]]
    if not len(own):
        return {}
    is_trained = np.isin(owners, rows) & is_decided
    return dict(pairs_by_key(owners[is_trained], pairs[is_trained], owners[own], pairs[own]))


CHECK = Check(
    "near_leakage",
    "training rows whose prompt is similar to a held-out prompt",
    compare=compare_near_leakage,
    advice="Try: data.checks.near_leakage: fix, which drops the training row.",
)
