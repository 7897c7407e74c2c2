"""The types of a chat."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# The generation prompt of some templates has the opening tag already, so the answer lacks it.
_REASONING = re.compile(r"\A(?:\s*<think>.*?|(?:(?!<think>).)*?)</think>", re.DOTALL)

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

ChatPrompt = Messages | dict[str, Any]
"""The prompt of a request: a conversation, or an object with `messages` and `tools`."""


def with_tools(messages: Messages, tools: Sequence[Mapping[str, Any]]) -> ChatPrompt:
    """Return the prompt of a request with a conversation, and with tools if there are any."""
    return {"messages": messages, "tools": list(tools)} if tools else messages


def messages_of(asked: ChatPrompt) -> Messages:
    """Return the conversation of a request."""
    return asked["messages"] if isinstance(asked, dict) else asked


def tools_of(asked: ChatPrompt) -> list[dict[str, Any]]:
    """Return the tools of a request."""
    return asked["tools"] if isinstance(asked, dict) else []


def content_of(message: Message) -> str:
    """Return a message's text; empty for a message that only calls tools."""
    content: str = message.get("content") or ""
    return content


def calls_of(message: Message) -> list[dict[str, Any]]:
    """Return name and arguments of each call of a message, without its id, which is random."""
    return [call["function"] for call in message.get("tool_calls", [])]


def with_call_ids(messages: Sequence[Message]) -> Messages:
    """Return a conversation whose calls have ids, and whose results name the call that they answer.

    A server takes no call without an id, and some templates write it. An id that the data do not
    give has nine letters and digits, as Mistral's templates ask. Results without an id are in the
    order of the calls.
    """
    found: Messages = []
    waiting: list[str] = []
    num_calls = 0
    for message in messages:
        if "tool_calls" in message:
            calls = []
            for call in message["tool_calls"]:
                num_calls += 1
                calls.append(call if call.get("id") else {"id": f"call{num_calls:05d}", **call})
            message = {**message, "tool_calls": calls}
            waiting = [call["id"] for call in calls]
        elif message["role"] == "tool":
            if not message.get("tool_call_id") and waiting:
                message = {**message, "tool_call_id": waiting[0]}
            waiting = [one for one in waiting if one != message.get("tool_call_id")]
        found.append(message)
    return found


def as_request(messages: Sequence[Message]) -> Messages:
    """Return a conversation as OpenAI's API takes it: calls with ids, and arguments as text."""

    def call_of(call: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments", {}), ensure_ascii=False)
        return {**call, "function": function}

    return [
        {**message, "tool_calls": [call_of(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in with_call_ids(messages)
    ]


def bare_answer(text: str) -> str:
    """Return an answer without the reasoning that some models write first, trimmed and composed.

    Korean text of macOS is decomposed (NFD), and some tokenizers compose what they read.
    """
    return unicodedata.normalize("NFC", _REASONING.sub("", text).strip())


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
