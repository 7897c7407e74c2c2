"""Whole conversations: `messages`, and ShareGPT's `conversations`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.problem import RowProblem
from training.data.row import Row
from training.data.shapes.calls import read_tools
from training.data.shapes.turn_advice import in_each_row
from training.data.shapes.turns import Conversation, read_conversation
from training.data.shapes.values import check_text, joined_text
from tuneline.core.messages import Message

ANSWERED = 'until(length == 0 or (.[-1] | .role // .from | IN("assistant", "gpt")); .[:-1])'
"""jq's filter from a list of messages to those up to its last answer."""


def read_messages(row: Mapping[str, Any]) -> Row:
    """Return the row of `{"messages": [...]}`."""
    return as_row(read_conversation(row["messages"], "messages"), row, "messages")


def read_sharegpt(row: Mapping[str, Any]) -> Row:
    """Return the row of `{"conversations": [{"from", "value"}, ...]}`."""
    return as_row(read_conversation(row["conversations"], "conversations"), row, "conversations")


def as_row(conversation: Conversation, row: Mapping[str, Any], where: str) -> Row:
    """Return a conversation whose last trained answer is the completion.

    Raises:
        RowProblem: No answer is at the end, or none is trained.
    """
    messages = conversation.messages
    if messages[-1]["role"] in ("user", "tool") and "assistant" not in {
        message["role"] for message in messages
    }:
        raise RowProblem(
            f"{where}: has no answer; expected the assistant last",
            hint=f"If the answer is in another column: --column prompt={where} --column "
            f"completion=NAME. For prompts without an answer: --column prompt={where}",
            is_of_file=True,
        )
    if messages[-1]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages[-8:])
        raise RowProblem(
            f"{where}: roles are {roles}; expected an optional system message, then user and "
            "assistant in turn, the assistant last",
            hint="To leave out what follows the last answer: "
            + in_each_row(where, ANSWERED).removeprefix("Try: "),
        )
    trained = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index not in conversation.untrained
    ]
    if not trained:
        raise RowProblem(f"{where}: every assistant message has weight 0; expected one to train")
    last = trained[-1]
    prompt = with_system(messages[:last], row)
    shift = len(prompt) - last
    return Row(
        prompt,
        (messages[last],),
        tools=read_tools(row),
        untrained=tuple(index + shift for index in conversation.untrained if index < last),
    )


def with_system(messages: tuple[Message, ...], row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return messages behind the system message that a row's `system` column gives.

    Raises:
        RowProblem: The column is not text, or the messages have a system message of their own.
    """
    name = "system" if "system" in row else "system_prompt"
    given = joined_text(row.get(name, ""), f"field {name!r}")
    text = check_text(given, f"field {name!r}", may_be_empty=True)
    if not text.strip():
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] == text:
            return messages
        raise RowProblem(f"field {name!r}: the messages have a system message of their own")
    return ({"role": "system", "content": text}, *messages)


def own_reasoning(row: Mapping[str, Any]) -> Message:
    """Return the reasoning of an answer that a row's column `reasoning_content` gives; else {}."""
    if "reasoning_content" not in row:
        return {}
    name = "field 'reasoning_content'"
    return {"reasoning_content": check_text(row["reasoning_content"], name)}
