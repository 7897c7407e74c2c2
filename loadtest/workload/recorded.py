"""`source: recorded`: the chats that a server recorded, each at its own time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.workload.content import MAX_PROBLEMS, Content, Prompt, Wanted, file_of, is_text
from loadtest.workload.sessions.conversation import message_problem
from loadtest.workload_config import tool_problems
from tuneline.core.errors import DataError
from tuneline.core.messages import Message, Messages
from tuneline.core.recorded import read_lines, recorded_files

ROUTE = "/v1/chat/completions"
OTHER_ROUTE = "requests of another route than chat"
BROKEN = "lines that are not whole"


@dataclass(frozen=True)
class Chat:
    """A recorded request.

    Attributes:
        time_s: Its arrival, in seconds since 1970.
        end_s: The end of its answer.
        answer: The message that the server gave; None of several.
        num_tokens: The tokens of the answer, if the record has them.
    """

    time_s: float
    end_s: float
    messages: Messages
    tools: tuple[dict[str, Any], ...]
    answer: Message | None
    num_tokens: int | None


def read(wanted: Wanted) -> Content:
    """Return the recorded chats in the order of their times.

    A request keeps its messages and tools. Its answer gets the length that was recorded. Settings
    of the sampling are left out: all requests have those of the load test.

    Raises:
        DataError: No file can be read, or no line is a chat that can be sent again.
    """
    found = read_chats(wanted)
    prompts = [Prompt(chat.messages, chat.num_tokens, chat.tools) for chat in found]
    return Content(prompts, [chat.time_s for chat in found])


def read_chats(wanted: Wanted) -> list[Chat]:
    """Return the recorded chats in the order of their times; `wanted.left_out` counts the rest.

    Raises:
        DataError: No file can be read, or no line is a chat that can be sent again.
    """
    path = file_of(wanted.workload)
    found: list[Chat] = []
    problems: list[str] = []
    for line in read_lines(recorded_files(path)):
        if line.record is None:
            wanted.left_out[BROKEN] += 1
        elif line.is_feedback:
            continue
        elif line.record.get("route") != ROUTE:
            wanted.left_out[OTHER_ROUTE] += 1
        else:
            try:
                found.append(_chat(line.record))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                is_said = isinstance(error, ValueError)
                reason = str(error) if is_said else "the line has another form"
                wanted.left_out[reason] += 1
                problems.append(f"{line.path}: line {line.number}: {reason}")
    if not found:
        raise DataError(problems[:MAX_PROBLEMS] or f"{path}: no line is a request of {ROUTE}")
    return sorted(found, key=lambda chat: chat.time_s)


def _chat(record: Mapping[str, Any]) -> Chat:
    """Return what a request asked and got.

    Raises:
        ValueError: It cannot be sent again; the text is the reason.
    """
    time_s, request = record["time"], record["request"]
    if not isinstance(time_s, int | float) or not 0 <= time_s < 1e11:
        raise ValueError("time is not in seconds since 1970")
    seconds = record.get("seconds", 0.0)
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e6:
        raise ValueError("seconds are not the length of an answer")
    messages = request["messages"]
    problems = [message_problem(one) for one in messages]
    if problem := next((one for one in problems if one is not None), None):
        raise ValueError(problem)
    tools = request.get("tools") or []
    if wrong := tool_problems(tools):
        raise ValueError(f"tools: {wrong[0]}")
    if not messages or not is_text(json.dumps([messages, tools], ensure_ascii=False)):
        raise ValueError("messages are empty, or hold half of a surrogate pair")
    tokens = (record["answer"].get("usage") or {}).get("completion_tokens")
    length = tokens if isinstance(tokens, int) and 0 < tokens < 2**31 else None
    return Chat(
        float(time_s), float(time_s + seconds), messages, tuple(tools),
        _answer(record["answer"]), length,
    )  # fmt: skip


def _answer(answer: Mapping[str, Any]) -> Message | None:
    """Return the only message of an answer, with what a client sends back of it."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        return None
    given = choices[0]["message"]
    kept = {name: given[name] for name in ("content", "tool_calls") if given.get(name)}
    message: Message = {"role": "assistant", "content": None, **kept}
    return None if message_problem(message) is not None else message
