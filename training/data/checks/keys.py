"""Keys of rows: eight bytes each, so that a million rows are compared in a few megabytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from training.data.row import Row
from tuneline.core.messages import Message, content_of

# A row's parts are JSON values in a fixed order; `sort_keys` orders those inside.
_ENCODER = json.JSONEncoder(sort_keys=True)


def short_key(*parts: Any) -> int:
    """Return the first eight bytes of a digest of JSON values."""
    data = _ENCODER.encode(parts).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def content_key(row: Row) -> int:
    """Return a key that is equal for rows of equal texts, tools and label; other columns differ."""
    parts = [row.text, row.prompt, row.completion, row.rejected, row.label, row.tools]
    return short_key(*parts)


def prompt_key(row: Row, seed: int) -> int:
    """Return a key that is equal for prompts that differ only in case and spacing.

    The keys of one seed, in ascending order, are the order in which prompts are held out.
    """
    if row.text is not None:
        normal = json.dumps(["text", _normal(row.text)])
    else:
        normal = json.dumps([[m["role"], _normal(content_of(m))] for m in row.prompt])
    return int.from_bytes(hashlib.sha256(f"{seed}\0{normal}".encode()).digest()[:8], "big")


def claim_keys(row: Row, prompt: int) -> tuple[int, int]:
    """Return the keys of the question that a row answers, and of its answer.

    Two rows contradict each other if their questions are equal and their answers differ. A label
    answers whether its completion is good, and a preference which of two completions is better.
    """
    completion = _answer(row.completion)
    if row.kind == "label":
        return short_key(prompt, completion), short_key(row.label)
    if row.kind == "preference":
        both = sorted([completion, _answer(row.rejected)])
        return short_key(prompt, *both), short_key(completion)
    return prompt, short_key(completion)


def _answer(messages: Sequence[Message]) -> str:
    parts = [[content_of(m).strip(), m.get("tool_calls", [])] for m in messages]
    return _ENCODER.encode(parts)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
