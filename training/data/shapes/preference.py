"""Preference pairs: a chosen and a rejected answer to one prompt.

The prompt is a column of its own (`prompt`, `messages`, `conversations` or `instruction`), or the
turns that both answers begin with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from training.data.problem import RowProblem
from training.data.row import Row
from training.data.shapes.alpaca import alpaca_prompt
from training.data.shapes.conversation import with_system
from training.data.shapes.turns import check_order, check_text, read_tools, read_turns
from tuneline.core.messages import Message

_TURN = re.compile(r"\n\n(Human|Assistant): ?")
"""The marks of turns in text of Anthropic's HH-RLHF."""


def read_preference(row: Mapping[str, Any]) -> Row:
    """Return the row of a pair.

    Raises:
        RowProblem: The two answers are equal, or are not one answer each to the same prompt.
    """
    chosen, rejected = (_turns(row[name], name) for name in ("chosen", "rejected"))
    prompt = _prompt(row)
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


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """Return the prompt of a column of its own; None if no column has it."""
    if "prompt" not in row and "instruction" in row:
        return alpaca_prompt(row)
    name = next((n for n in ("prompt", "messages", "conversations") if n in row), None)
    if name is None:
        return None
    if isinstance(row[name], str) and name == "prompt":
        return ({"role": "user", "content": check_text(row[name], "field 'prompt'")},)
    return read_turns(row[name], name).messages


def _turns(value: Any, name: str) -> tuple[Message, ...]:
    """Return an answer's messages: one of the assistant for text, unless the text marks turns."""
    if isinstance(value, dict) and ("role" in value or "from" in value):
        return read_turns([value], name).messages
    if not isinstance(value, str):
        return read_turns(value, name).messages
    text = check_text(value, f"field {name!r}")
    before, *parts = _TURN.split(text)
    if len(parts) < 4 or before.strip():
        return ({"role": "assistant", "content": text},)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        {"role": roles[mark], "content": check_text(words.strip(), f"field {name!r}")}
        for mark, words in zip(parts[::2], parts[1::2], strict=True)
    )


def _after(prompt: tuple[Message, ...], turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the turns without the prompt that many files repeat at their beginning."""
    return turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
