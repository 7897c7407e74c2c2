"""Answers that repeat one passage again and again, as a model does that cannot stop."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator

from training.config.checks import RepetitionCheck
from training.data.checks.check import Check, Found
from training.data.checks.texts import answer_columns
from training.data.row import Row

# A shorter text compresses well without being repetitive.
MIN_BYTES = 240
# Compressed size over size. Prose is at 0.4 and above, tables and lists of like items at 0.2 and
# above; a sentence repeated six times is at 0.15.
MAX_RATIO = 0.15
# A line of dashes is a rule, not a repetition; so are the parts of a table.
_RULES = "-=_*.#~+|^\"':`─═·…"
_ONE_CHARACTER = re.compile(r"(\S)\1{23,}")


def find_repetition(row: Row, _config: RepetitionCheck) -> Iterator[Found]:
    """Return the texts of a row's answers that are mostly one passage repeated."""
    for column, text in answer_columns(row):
        one = next((m for m in _ONE_CHARACTER.finditer(text) if m[1] not in _RULES), None)
        if one:
            yield Found(column, "one character repeated", one.group())
        elif _is_repetitive(text.encode("utf-8", "replace")) and not _is_json(text):
            yield Found(column, "passage repeated", text)


def _is_json(text: str) -> bool:
    """Return whether a text is a JSON document: a list of like objects has an end."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_repetitive(data: bytes) -> bool:
    """Return whether the whole text, or its second half, compresses to almost nothing."""
    if len(data) < MIN_BYTES:
        return False
    if len(zlib.compress(data, 1)) < MAX_RATIO * len(data):
        return True
    half = data[len(data) // 2 :]
    return len(half) >= MIN_BYTES and len(zlib.compress(half, 1)) < MAX_RATIO * len(half)


CHECK = Check(
    "repetition",
    "answers that repeat one passage",
    find=find_repetition,
    advice="Try: data.checks.repetition: fix, which drops these rows.",
)
