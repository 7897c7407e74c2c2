"""Rows whose texts equal an earlier row's on the same side of the split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from training.config.checks import DuplicatesCheck
from training.data.checks.check import Check, Hit

if TYPE_CHECKING:
    from training.data.checks.whole import Whole


def compare_duplicates(whole: Whole, _config: DuplicatesCheck) -> Iterator[Hit]:
    """Return every row that equals an earlier row."""
    for is_heldout in (False, True):
        rows = whole.kept(is_heldout)
        _, first, group = np.unique(whole.content[rows], return_index=True, return_inverse=True)
        earlier = rows[first[group]]
        for row, other in zip(rows[earlier != rows], earlier[earlier != rows], strict=True):
            yield Hit(int(row), "equal rows", int(other))


CHECK = Check(
    "duplicates",
    "rows that equal an earlier row",
    compare=compare_duplicates,
    dropped_as="exact duplicate",
    advice="Try: data.checks.duplicates: fix, which drops the later row.",
)
