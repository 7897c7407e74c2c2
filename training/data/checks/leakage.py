"""Training rows whose prompt is also held out; case and spacing do not count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from training.config.checks import LeakageCheck
from training.data.checks.check import Check, Hit

if TYPE_CHECKING:
    from training.data.checks.whole import Whole


def compare_leakage(whole: Whole, _config: LeakageCheck) -> Iterator[Hit]:
    """Return every training row whose prompt a held-out row has."""
    rows, held = whole.kept(False), whole.kept(True)
    keys, first = np.unique(whole.prompt[held], return_index=True)
    if not len(keys):
        return
    place = np.minimum(np.searchsorted(keys, whole.prompt[rows]), len(keys) - 1)
    is_leaked = keys[place] == whole.prompt[rows]
    for row, other in zip(rows[is_leaked], held[first[place[is_leaked]]], strict=True):
        yield Hit(int(row), "equal prompts", int(other))


CHECK = Check(
    "leakage",
    "training rows whose prompt is held out",
    compare=compare_leakage,
    dropped_as="prompt is held out",
    advice="Try: data.checks.leakage: fix, which drops the training row.",
)
