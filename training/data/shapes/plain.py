"""Rows of one column: a prompt without an answer, or plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.problem import RowProblem
from training.data.row import Row
from training.data.shapes.calls import read_tools
from training.data.shapes.conversation import with_system
from training.data.shapes.marks import marked_prompt
from training.data.shapes.turns import check_order, read_conversation
from training.data.shapes.values import check_text


def read_prompt(row: Mapping[str, Any]) -> Row:
    """Return the row of a prompt that a reward function judges the answers to."""
    if isinstance(row["prompt"], list):
        messages = read_conversation(row["prompt"], "prompt").messages
        if messages[-1]["role"] not in ("user", "tool"):
            raise RowProblem(f"prompt: ends with {messages[-1]['role']}; expected a user's message")
        return Row(with_system(messages, row), tools=read_tools(row))
    turns, _ = marked_prompt(row["prompt"], "field 'prompt'")
    check_order(turns, "prompt")
    if turns[-1]["role"] != "user":
        raise RowProblem("field 'prompt': ends with an answer; expected a user's message")
    return Row(with_system(turns, row), tools=read_tools(row))


def read_text(row: Mapping[str, Any]) -> Row:
    """Return the row of text that is trained as it is, without a chat template."""
    return Row(text=check_text(row["text"], "field 'text'"))
