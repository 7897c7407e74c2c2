"""A prompt and its completion, as text or as messages; with a label, KTO's unpaired preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from training.data.problem import RowProblem
from training.data.row import Row
from training.data.shapes.calls import read_tools
from training.data.shapes.conversation import as_row, own_reasoning, with_system
from training.data.shapes.fields import label_of
from training.data.shapes.marks import marked_answer, marked_prompt
from training.data.shapes.turns import check_order, read_conversation, read_turns
from training.data.shapes.values import check_text


def read_prompt_completion(row: Mapping[str, Any]) -> Row:
    """Return the row of a prompt and its completion; each is text, or messages."""
    prompt, completion = row["prompt"], row["completion"]
    completion = [completion] if isinstance(completion, dict) else completion
    if isinstance(prompt, list) and isinstance(completion, str):
        answer = check_text(completion, "field 'completion'")
        completion = [{"role": "assistant", "content": answer}]
    elif isinstance(prompt, str) and isinstance(completion, list):
        prompt = list(marked_prompt(prompt, "field 'prompt'")[0])
    if isinstance(prompt, list) and isinstance(completion, list):
        begun = read_turns(completion, "completion").messages[0]
        if begun["role"] != "assistant":
            raise RowProblem(f"completion[0]: is of {begun['role']}; expected the assistant's")
        read = as_row(read_conversation(prompt + completion, "prompt"), row, "prompt")
        return replace(read, completion=({**read.completion[0], **own_reasoning(row)},))
    question, is_marked = marked_prompt(prompt, "field 'prompt'")
    message = marked_answer(completion, "field 'completion'", is_marked=is_marked)
    check_order([*question, message], "prompt")
    message |= own_reasoning(row)
    return Row(with_system(question, row), (message,), tools=read_tools(row))


def read_labelled(row: Mapping[str, Any]) -> Row:
    """Return the row of a prompt, an answer, and whether the answer is a good one."""
    return replace(read_prompt_completion(row), label=label_of(row["label"]))
