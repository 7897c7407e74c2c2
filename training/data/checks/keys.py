"""Keys of rows: eight bytes each, so that a million rows are compared in a few megabytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

from training.data.row import SYSTEM_ROLES, Row
from tuneline.core.messages import Message, calls_of, content_of, plain_prompt, plain_text

# A row's parts are JSON values in a fixed order; `sort_keys` orders those inside.
_ENCODER = json.JSONEncoder(sort_keys=True)


def short_key(*parts: Any) -> int:
    """Return the first eight bytes of a digest of JSON values."""
    data = _ENCODER.encode(parts).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def content_key(row: Row) -> int:
    """Return a key that is equal for rows of equal texts, calls, tools and label.

    Other columns and the ids of calls do not count.
    """
    chosen = _without_ids(row.messages)
    rejected = _without_ids([*row.prompt, *row.rejected]) if row.rejected else []
    parts = [row.text, len(row.prompt), chosen, rejected, row.label, row.tools]
    return short_key(*parts)


def prompt_key(row: Row, seed: int) -> int:
    """Return a key that is equal for prompts that ask the same; see `plain_prompt`.

    The keys of one seed, in ascending order, are the order in which prompts are held out.
    """
    if row.text is not None:
        return _seeded_key(["text", plain_text(row.text)], seed)
    return _seeded_key(plain_prompt(row.prompt, row.tools), seed)


def turn_keys(row: Row, seed: int) -> list[int]:
    """Return the keys of the prompts before the other answers that a conversation trains.

    They compare with `prompt_key`: training on all turns trains an answer to each of them.
    """
    if row.kind != "answer":
        return []
    messages = row.messages
    return [
        _seeded_key(plain_prompt(messages[:index], row.tools), seed)
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index not in (0, len(row.prompt), *row.untrained)
    ]


def exchange_keys(row: Row) -> list[tuple[int, int]]:
    """Return keys of the questions that a row answers without the system's words, and of answers.

    The first is the row's own question with the turns before it. The others are the questions
    without these turns, and those of earlier answers that a conversation trains.
    """
    if row.kind != "answer":
        return []
    messages, found = row.messages, []
    trained = [
        index
        for index, message in enumerate(messages[:-1])
        if message["role"] == "assistant" and index not in row.untrained
    ]
    for end in (len(messages) - 1, *trained):
        turns = [message for message in messages[:end] if message["role"] not in SYSTEM_ROLES]
        asked = [index for index, message in enumerate(turns) if message["role"] == "user"]
        answer = short_key(plain_prompt(messages[end : end + 1]))
        for start in sorted({0, asked[-1]}) if asked else ():
            found.append((short_key(plain_prompt(turns[start:], row.tools)), answer))
    return found


def _seeded_key(value: Any, seed: int) -> int:
    data = f"{seed}\0{json.dumps(value)}".encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def claim_keys(row: Row, prompt: int) -> tuple[int, int]:
    """Return the keys of the question that a row answers, and of its answer.

    Two rows contradict each other if their questions are equal and their answers differ. A label
    answers whether its completion is good, and a preference which of two completions is better.
    Spacing and the Unicode form of a letter do not make another answer.
    """
    completion = _answer(row.completion)
    if row.kind == "label":
        return short_key(prompt, completion), short_key(row.label)
    if row.kind == "preference":
        both = sorted([completion, _answer(row.rejected)])
        return short_key(prompt, *both), short_key(completion)
    return prompt, short_key(completion)


def spelling_key(row: Row) -> int:
    """Return a key of an answer, or of a label, as it is written."""
    if row.label is not None:
        return short_key(row.label)
    return short_key([[content_of(m).strip(), calls_of(m)] for m in row.completion])


def _answer(messages: Sequence[Message]) -> str:
    parts = [[" ".join(normalize("NFC", content_of(m)).split()), calls_of(m)] for m in messages]
    return _ENCODER.encode(parts)


def tools_key(row: Row) -> int:
    """Return a key that is equal for rows of the same tools in any order; 0 without tools."""
    return short_key(plain_prompt((), row.tools)) if row.tools else 0


def _without_ids(messages: Sequence[Message]) -> list[Message]:
    """Return messages without the ids of calls, which are random.

    The results of calls are in the order of the calls; a result in another place names its call by
    the call's place.
    """
    plain: list[Message] = []
    ids: list[str | None] = []
    place = 0
    for message in messages:
        kept = {k: v for k, v in message.items() if k not in ("tool_calls", "tool_call_id")}
        kept["content"] = content_of(message)
        if "tool_calls" in message:
            kept["tool_calls"] = calls_of(message)
            ids, place = [call.get("id") for call in message["tool_calls"]], 0
        elif message["role"] == "tool":
            answered = message.get("tool_call_id")
            if answered in ids and ids.index(answered) != place:
                kept["call"] = ids.index(answered)
            place += 1
        plain.append(kept)
    return plain
