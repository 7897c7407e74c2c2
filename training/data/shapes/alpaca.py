"""Alpaca: `instruction`, `input`, `output`, and LLaMA-Factory's `system` and `history`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.problem import RowProblem, kind_of
from training.data.row import Row
from training.data.shapes.calls import read_tools
from training.data.shapes.conversation import own_reasoning, with_system
from training.data.shapes.values import as_list, check_text
from tuneline.core.messages import Message


def read_alpaca(row: Mapping[str, Any]) -> Row:
    """Return the row of an instruction; the input follows it behind a blank line."""
    answer: Message = {
        "role": "assistant",
        "content": check_text(row["output"], "field 'output'"),
    }
    answer |= own_reasoning(row)
    return Row(alpaca_prompt(row), (answer,), tools=read_tools(row))


def alpaca_prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the messages of system, history, instruction and input."""
    instruction = check_text(row["instruction"], "field 'instruction'")
    extra = check_text(row.get("input", ""), "field 'input'", may_be_empty=True)
    content = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    messages = (*_history(row.get("history", [])), {"role": "user", "content": content})
    return with_system(messages, row)


def _history(history: Any) -> list[Message]:
    """Return the turns of `[["question", "answer"], ...]`."""
    history = as_list(history, "history")
    if not isinstance(history, list):
        raise RowProblem(f"field 'history': expected a list of pairs, found {kind_of(history)}")
    messages: list[Message] = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowProblem(f"history[{index}]: expected a question and an answer")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": check_text(text, f"history[{index}]")})
    return messages
