"""The table of checks, in the order in which they are applied. A new check is a file and a row.

A row that one check drops is not seen by the checks after it, so that each dropped row has one
reason.
"""

from __future__ import annotations

from training.data.checks import (
    contradictions,
    duplicates,
    empty_answers,
    labels,
    languages,
    leakage,
    length,
    near_duplicates,
    near_leakage,
    personal_data,
    refusals,
    repetition,
    tool_calls,
    truncation,
    words,
)
from training.data.checks.check import Check

# These change rows. They run first: changed rows may be equal, and may have the same prompt.
REPAIRING: tuple[Check, ...] = (personal_data.CHECK, length.CHECK)

# These run before rows are held out; a duplicate has no vote in the split.
BEFORE_SPLIT: tuple[Check, ...] = (*REPAIRING, empty_answers.CHECK, duplicates.CHECK)

CHECKS: tuple[Check, ...] = (
    *BEFORE_SPLIT,
    leakage.CHECK,
    near_duplicates.CHECK,
    near_leakage.CHECK,
    contradictions.CHECK,
    repetition.CHECK,
    truncation.CHECK,
    refusals.CHECK,
    tool_calls.CHECK,
    languages.CHECK,
    words.CHECK,
    labels.CHECK,
)
