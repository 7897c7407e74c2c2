"""Training rows whose prompt is also held out; case and spacing do not count.

A conversation also trains an answer to each of its earlier prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from training.config.checks import LeakageCheck
from training.data.checks.check import Check, Hit

if TYPE_CHECKING:
    from training.data.checks.whole import Whole


def compare_leakage(whole: Whole, _config: LeakageCheck) -> Iterator[Hit]:
    """Return every training row whose prompt a held-out row has, once."""
    rows, held = whole.kept(False), whole.kept(True)
    if not len(held):
        return
    found = dict(pairs_by_key(rows, whole.prompt[rows], held, whole.prompt[held]))
    for row, other in found.items():
        yield Hit(row, "equal prompts", other)
    owners, keys = whole.turns[:, 0].astype(np.int64), whole.turns[:, 1]
    is_trained = np.isin(owners, rows)
    earlier = pairs_by_key(owners[is_trained], keys[is_trained], held, whole.prompt[held])
    for row, other in {row: other for row, other in earlier if row not in found}.items():
        yield Hit(row, "equal prompt of an earlier turn", other)


def pairs_by_key(
    rows: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64],
    held: npt.NDArray[np.int64], held_keys: npt.NDArray[np.uint64],
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """Return each row whose key is that of a held-out row, with the first such held-out row."""
    known, first = np.unique(held_keys, return_index=True)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    is_leaked = known[place] == keys
    for row, other in zip(rows[is_leaked], held[first[place[is_leaked]]], strict=True):
        yield int(row), int(other)


CHECK = Check(
    "leakage",
    "training rows whose prompt is held out",
    compare=compare_leakage,
    dropped_as="prompt is held out",
    advice="Try: data.checks.leakage: fix, which drops the training row.",
)
