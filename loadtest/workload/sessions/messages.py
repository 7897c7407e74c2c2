"""`source: messages` and `source: prompts`: conversations as lists of chat messages."""

from __future__ import annotations

from typing import Any

from loadtest.workload.content import MAX_PROBLEMS, Wanted, file_of, json_lines, read_text
from loadtest.workload.images import plain_content
from loadtest.workload.sessions.conversation import (
    Conversation,
    message_problem,
    turns_of,
    with_text_arguments,
)
from loadtest.workload_config import tool_problems
from tuneline.core.errors import DataError
from tuneline.core.messages import Message, messages_of, tools_of


def read_given(wanted: Wanted) -> list[Conversation]:
    """Return the given prompts as conversations."""
    return [
        Conversation(turns_of(messages_of(asked)), tools=tools_of(asked)) for asked in wanted.given
    ]


def read_file(wanted: Wanted) -> list[Conversation]:
    """Read JSON Lines: a list of messages, or an object with such a list as `messages`.

    The object may have `tools` in the form of OpenAI's chat route.

    Raises:
        DataError: A line is not a conversation; up to MAX_PROBLEMS such lines are named.
    """
    path = file_of(wanted.workload)
    found: list[Conversation] = []
    problems: list[str] = []
    for number, value in json_lines(path, read_text(path), problems):
        messages: Any = value.get("messages") if isinstance(value, dict) else value
        tools: Any = (value.get("tools") or []) if isinstance(value, dict) else []
        problem = list_problem(messages) or tools_problem(tools)
        if problem is None and not turns_of(messages):
            problem = "no message of a user; expected at least one"
        if problem is not None:
            problems.append(f"{path}: line {number}: {problem}")
            continue
        turns = turns_of([plain(message) for message in messages])
        found.append(Conversation(turns, tools=tools))
    if problems:
        raise DataError(problems[:MAX_PROBLEMS])
    return found


def list_problem(messages: Any) -> str | None:
    """Return why a value is not a list of chat messages; None for such a list."""
    if not isinstance(messages, list) or not messages:
        return "expected a list of messages"
    for place, message in enumerate(messages):
        if (problem := message_problem(message)) is not None:
            return f"message {place + 1}: {problem}"
    return None


def tools_problem(tools: Any) -> str | None:
    """Return why a value is not a list of tools; None for such a list, also an empty one."""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return "expected a list of objects as tools"
    return next(iter(tool_problems(tools)), None)


def plain(message: Message) -> Message:
    """Return a message with the keys that a server takes, and no others."""
    kept = ("role", "content", "tool_calls", "tool_call_id", "name")
    found = {key: message[key] for key in kept if message.get(key) is not None}
    if "content" in found:
        found["content"] = plain_content(found["content"])
    if "tool_calls" in found:
        found["tool_calls"] = with_text_arguments(found["tool_calls"])
    return found
