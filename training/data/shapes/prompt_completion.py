"""A prompt and its completion, as text or as messages; with a label, KTO's unpaired preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from training.data.problem import RowProblem, excerpt
from training.data.row import Row
from training.data.shapes.conversation import as_row, with_system
from training.data.shapes.marks import marked_answer, marked_prompt
from training.data.shapes.turns import check_order, check_text, read_conversation, read_tools

LABELS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""Each value of a label, and what it means; text is compared in lower case."""


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
        if len(completion) != 1:
            raise RowProblem(f"field 'completion': expected one message, found {len(completion)}")
        return as_row(read_conversation(prompt + completion, "prompt"), row, "prompt")
    question, is_marked = marked_prompt(prompt, "field 'prompt'")
    message = marked_answer(completion, "field 'completion'", is_marked=is_marked)
    check_order([*question, message], "prompt")
    return Row(with_system(question, row), (message,), tools=read_tools(row))


def read_labelled(row: Mapping[str, Any]) -> Row:
    """Return the row of a prompt, an answer, and whether the answer is a good one."""
    label = row["label"]
    key = label.strip().casefold() if isinstance(label, str) else label
    if not isinstance(key, bool | str | int) or key not in LABELS:
        raise RowProblem(
            f"field 'label': expected true or false, found {excerpt(label)}. If the column has "
            "another meaning, give it another name: data.columns: {category: label}"
        )
    return replace(read_prompt_completion(row), label=LABELS[key])
