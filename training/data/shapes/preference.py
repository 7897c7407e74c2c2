"""Preference pairs: a chosen and a rejected answer to one prompt.

The prompt is a column of its own (`prompt`, `messages`, `conversations` or `instruction`), or the
turns that both answers begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.data.problem import RowProblem
from training.data.row import Row
from training.data.shapes.alpaca import alpaca_prompt
from training.data.shapes.calls import read_tools
from training.data.shapes.conversation import with_system
from training.data.shapes.marks import marked_answer, marked_prompt, split_marks
from training.data.shapes.turns import check_order, read_turns
from training.data.shapes.values import check_text
from tuneline.core.messages import Message, content_of


def read_preference(row: Mapping[str, Any]) -> Row:
    """Return the row of a pair.

    Raises:
        RowProblem: The two answers are equal, or are not one answer each to the same prompt.
    """
    prompt, is_marked = _prompt(row)
    chosen, rejected = (
        _turns(row[name], name, is_marked=is_marked) for name in ("chosen", "rejected")
    )
    if prompt is None:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt = chosen[:shared]
        if not prompt:
            raise RowProblem(
                "missing field 'prompt': chosen and rejected do not begin with the same turns"
            )
    answers = [_after(prompt, turns) for turns in (chosen, rejected)]
    for name, answer in zip(("chosen", "rejected"), answers, strict=True):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            roles = ", ".join(message["role"] for message in answer) or "nothing"
            raise RowProblem(
                f"field {name!r}: after the prompt come {roles}; expected one answer of the "
                "assistant"
            )
    if answers[0] == answers[1]:
        raise RowProblem("fields 'chosen' and 'rejected' are equal; expected two answers")
    check_order([*prompt, *answers[0]], "prompt")
    return Row(with_system(prompt, row), answers[0], answers[1], tools=read_tools(row))


def read_swift_pairs(row: Mapping[str, Any]) -> Row:
    """Return the row of ms-swift's pair: a conversation, and another text for its last answer."""
    messages = read_turns(row["messages"], "messages").messages
    if messages[-1]["role"] != "assistant":
        raise RowProblem("messages: ends without an answer; expected the chosen answer last")
    rest = {name: value for name, value in row.items() if name != "rejected_response"}
    pair = {"chosen": [messages[-1]], "rejected": row["rejected_response"]}
    return read_preference({**rest, "messages": list(messages[:-1]), **pair})


def _prompt(row: Mapping[str, Any]) -> tuple[tuple[Message, ...] | None, bool]:
    """Return the prompt of a column of its own, None if no column has it, and whether the prompt is
    text that marks its turns."""
    if "prompt" not in row and "instruction" in row:
        return alpaca_prompt(row), False
    name = next((n for n in ("prompt", "messages", "conversations") if n in row), None)
    if name is None:
        return None, False
    if isinstance(row[name], str) and name == "prompt":
        return marked_prompt(row[name], "field 'prompt'")
    return read_turns(row[name], name).messages, False


def _turns(value: Any, name: str, *, is_marked: bool) -> tuple[Message, ...]:
    """Return an answer's messages: one of the assistant for text, unless the text marks turns."""
    if isinstance(value, dict) and ("role" in value or "from" in value):
        return read_turns([value], name).messages
    if not isinstance(value, str):
        return read_turns(value, name).messages
    where = f"field {name!r}"
    text = check_text(value, where)
    turns = split_marks(text, where)
    return turns if len(turns) > 1 else (marked_answer(text, where, is_marked=is_marked),)


def _after(prompt: tuple[Message, ...], turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the turns without the prompt that many files repeat at their beginning.

    White space around a text does not count: some files strip one of the two.
    """

    def bare(messages: Sequence[Message]) -> list[Message]:
        return [{**message, "content": content_of(message).strip()} for message in messages]

    return turns[len(prompt) :] if bare(turns[: len(prompt)]) == bare(prompt) else turns
