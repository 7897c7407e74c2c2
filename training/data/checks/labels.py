"""The balance of labels: answers that come from a short list, and good and bad completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from training.config.checks import LabelsCheck
from training.data.checks.check import Check, Hit
from tuneline.core.messages import plain_text

if TYPE_CHECKING:
    from training.data.checks.whole import Whole

# Answers are labels if they are at most this many, with this many rows each on average.
MAX_LABELS = 50
MIN_ROWS_PER_LABEL = 10
NUM_CHARACTERS = 60


def label_counts(whole: Whole) -> list[tuple[str, int, int]]:
    """Return each label of the training rows, its number of rows and its first row.

    The most frequent label is first. Personal data in labels are masked. Answers that are free text
    have no labels.
    """
    rows = whole.kept(False, kinds=("label",))
    if not len(rows):
        rows = whole.kept(False, kinds=("answer",))
    if not len(rows):
        return []
    _, first, counts = np.unique(whole.spelling[rows], return_index=True, return_counts=True)
    if len(first) > MAX_LABELS or len(rows) < MIN_ROWS_PER_LABEL * len(first):
        return []
    labels = []
    for row, count in zip(rows[first].tolist(), counts.tolist(), strict=True):
        read = whole.read(row)
        name = read.answer.strip() if read.label is None else str(read.label).lower()
        labels.append((whole.masked(name.replace("\n", " | "))[:NUM_CHARACTERS], count, row))
    return sorted(labels, key=lambda label: (-label[1], label[0]))


def compare_labels(whole: Whole, config: LabelsCheck) -> Iterator[Hit]:
    """Return one row for each label that is too rare or is another label in other letters, and a
    row if there is only one label."""
    labels = label_counts(whole)
    if len(labels) == 1:
        name, count, row = labels[0]
        yield Hit(row, "one label", detail=f"all {count:,} rows have the answer {name!r}")
        return
    first: dict[str, tuple[str, int]] = {}
    for name, count, row in labels:
        other, num_others = first.setdefault(plain_text(name).rstrip(".!。 "), (name, count))
        if other != name and len(name) < NUM_CHARACTERS:
            detail = f"{count:,} rows have the answer {name!r}; {num_others:,} have {other!r}"
            yield Hit(row, "one label in two spellings", detail=detail)
        elif labels[0][1] > config.max_ratio * count:
            detail = f"{count:,} rows have the answer {name!r}; {labels[0][1]:,} have another"
            yield Hit(row, "rare label", detail=detail)


CHECK = Check(
    "labels",
    "labels that are rare or have two spellings",
    compare=compare_labels,
    of_answers=True,
    advice="Try: one spelling of each label; more rows of rare labels; or a greater "
    "data.checks.labels.max_ratio.",
)
