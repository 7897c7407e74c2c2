"""The texts of a row, each with the column that it comes from."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from training.data.row import Row
from tuneline.core.messages import Message, calls_of, content_of

# Keys of a message that hold text.
_TEXT_KEYS = ("content", "reasoning_content")
# Characters that a reader does not see: soft hyphen, zero-width characters, marks of direction,
# variation selectors; and the Arabic letter that only makes a word longer.
_UNSEEN = re.compile("[\xad\u0640\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]")


def seen_text(text: str) -> str:
    """Return a text as a reader sees it.

    Unseen characters are left out, and full-width, half-width and decomposed characters have their
    usual form (NFKC).
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", _UNSEEN.sub("", text))


def columns(row: Row) -> Iterator[tuple[str, str]]:
    """Return each text of a row with its column, such as `prompt[0].content`."""
    if row.text is not None:
        yield "text", row.text
    yield from message_columns("prompt", row.prompt)
    yield from answer_columns(row)


def answer_columns(row: Row) -> Iterator[tuple[str, str]]:
    """Return each text of a row's answers with its column; of plain text, the text."""
    if row.text is not None:
        yield "text", row.text
    chosen = "chosen" if row.rejected else "completion"
    yield from message_columns(chosen, row.completion)
    yield from message_columns("rejected", row.rejected)


def message_columns(name: str, messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """Return each text of a list of messages with its column."""
    for index, message in enumerate(messages):
        for key in _TEXT_KEYS:
            if message.get(key):
                yield f"{name}[{index}].{key}", message[key]
        if calls := calls_of(message):
            yield f"{name}[{index}].tool_calls", json.dumps(calls, ensure_ascii=False)


def prompt_text(row: Row) -> str:
    """Return the text that asks: messages and calls of the prompt but not the system message."""
    if row.text is not None:
        return row.text
    parts = []
    for message in row.prompt:
        if message["role"] not in ("system", "developer"):
            parts.append(content_of(message))
            parts += [json.dumps(call, ensure_ascii=False) for call in calls_of(message)]
    return "\n".join(parts)


def answers_text(row: Row) -> str:
    """Return the text of all answers of a row; empty for a row without an answer."""
    parts = message_columns("completion", (*row.completion, *row.rejected))
    return "\n".join(text for _, text in parts)


def map_texts(row: Row, change: Callable[[str], str]) -> Row:
    """Return the row with every text changed, those inside of tool calls too."""
    return replace(
        row,
        text=None if row.text is None else change(row.text),
        prompt=_changed(row.prompt, change),
        completion=_changed(row.completion, change),
        rejected=_changed(row.rejected, change),
    )


def _changed(messages: Sequence[Message], change: Callable[[str], str]) -> tuple[Message, ...]:
    keys = (*_TEXT_KEYS, "tool_calls")
    return tuple(
        {key: _map(value, change) if key in keys else value for key, value in message.items()}
        for message in messages
    )


def _map(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map(entry, change) for entry in value]
    if isinstance(value, dict):
        return {key: _map(entry, change) for key, entry in value.items()}
    return value
