"""Rows whose prompt and answer are both similar to an earlier row's on the same side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from training.config.checks import NearDuplicatesCheck
from training.data.checks.check import Check, Hit
from training.data.checks.minhash import candidate_pairs

if TYPE_CHECKING:
    from training.data.checks.whole import Whole


def compare_near_duplicates(whole: Whole, config: NearDuplicatesCheck) -> Iterator[Hit]:
    """Return every row that is similar to an earlier row which is not such a row itself."""
    for is_heldout in (False, True):
        rows = whole.kept(is_heldout)
        # Equal rows are found by their keys; here the first of them is enough.
        _, first = np.unique(whole.content[rows], return_index=True)
        pairs = candidate_pairs(whole.row_bands, rows[np.sort(first)])
        similar = whole.similarities(pairs).min(axis=1, initial=1.0)
        is_found = similar >= config.similarity
        found: set[int] = set()
        by_later = sorted(zip(pairs[is_found].tolist(), similar[is_found].tolist(), strict=True),
                          key=lambda entry: (entry[0][1], entry[0][0]))  # fmt: skip
        for (earlier, later), similarity in by_later:
            if earlier not in found and later not in found:
                found.add(later)
                yield Hit(later, "similar rows", earlier, f"similarity {similarity:.2f}")


CHECK = Check(
    "near_duplicates",
    "rows that are similar to an earlier row",
    compare=compare_near_duplicates,
    advice="Try: data.checks.near_duplicates: fix, which drops the later row.",
)
