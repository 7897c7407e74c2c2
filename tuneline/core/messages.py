"""The types of a chat."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
"""One message of a chat, with OpenAI's keys. A key without a value is absent, never null.

`role`: system, developer, user, assistant or tool.
`content`: text; absent or empty in a message that only calls tools.
`reasoning_content`: the text that an assistant thinks before its answer.
`tool_calls`: the assistant's calls, `{"type": "function", "function": {"name", "arguments"}}` each,
with `arguments` as an object; a call may have an `id`.
`tool_call_id`, `name`: the call that a tool's message answers, and the tool's name.
"""

Messages = list[Message]
"""A conversation in order."""


def content_of(message: Message) -> str:
    """Return a message's text; empty for a message that only calls tools."""
    content: str = message.get("content") or ""
    return content


def calls_of(message: Message) -> list[dict[str, Any]]:
    """Return name and arguments of each call of a message, without its id, which is random."""
    return [call["function"] for call in message.get("tool_calls", [])]


def plain_prompt(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Any:
    """Return a JSON value that is equal for prompts that ask the same.

    Case, white space, the Unicode form of a letter, reasoning, the ids of calls and the order of
    tools do not count. Texts, calls with their arguments, and tools count.
    """
    turns = []
    for message in messages:
        turn = [message["role"], plain_text(content_of(message))]
        if calls := calls_of(message):
            turn.append(plain_json(calls))
        turns.append(turn)
    if not tools:
        return turns
    return {"prompt": turns, "tools": sorted((plain_json(tool) for tool in tools), key=json.dumps)}


def plain_text(text: str) -> str:
    """Return a text in lower case, in NFC and with single spaces."""
    # Case folding can undo NFC, and it does not know every decomposed letter.
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def plain_json(value: Any) -> Any:
    """Return a JSON value whose texts are `plain_text` and whose keys are in order."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: plain_json(value[key]) for key in sorted(value)}
    return value
