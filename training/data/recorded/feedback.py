"""Feedback among the lines to which a server records requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneline.core.recorded import read_lines


@dataclass(frozen=True)
class Feedback:
    """A client's verdict on an answer, and the answer that it wanted instead.

    Attributes:
        key: The name of the client's key.
    """

    key: str
    label: bool | None = None
    answer: str | None = None
    comment: str | None = None


def read_feedback(files: Sequence[Path]) -> dict[str, list[Feedback]]:
    """Return the feedback by the id that it names, one entry for each key.

    Later feedback of the same key changes what it has a field for.
    """
    found: dict[str, dict[str, Feedback]] = {}
    for line in read_lines(files):
        if line.record is None or not line.is_feedback:
            continue
        name, key = line.record["feedback"], line.record.get("key")
        if not isinstance(name, str) or not isinstance(key, str):
            continue
        fields = {
            field: line.record[field]
            for field, kind in (("label", bool), ("answer", str), ("comment", str))
            if isinstance(line.record.get(field), kind)
        }
        by_key = found.setdefault(name, {})
        by_key[key] = replace(by_key.get(key, Feedback(key)), **fields)
    return {name: list(by_key.values()) for name, by_key in found.items()}


def ids_of(record: Mapping[str, Any]) -> set[str]:
    """Return the ids by which feedback may name a request: its own, and its answer's."""
    answer = record.get("answer")
    ids = {record.get("id"), answer.get("id") if isinstance(answer, dict) else None}
    return {one for one in ids if isinstance(one, str)}


def count_ids(files: Sequence[Path], wanted: set[str]) -> Counter[tuple[str, str]]:
    """Return how many requests have each wanted id, by key and id."""
    counts: Counter[tuple[str, str]] = Counter()
    if wanted:
        for line in read_lines(files):
            if line.record is not None and not line.is_feedback:
                key = str(line.record.get("key"))
                counts.update((key, one) for one in ids_of(line.record) & wanted)
    return counts
