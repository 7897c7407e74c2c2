"""OpenAI's preference files: `input`, `preferred_output`, `non_preferred_output`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.problem import RowProblem
from training.data.row import Row
from training.data.shapes.preference import read_preference


def read_openai_pairs(row: Mapping[str, Any]) -> Row:
    """Return the row of a pair whose prompt and tools are in `input`."""
    given = row["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise RowProblem("field 'input': expected an object with messages")
    pair = {"chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    tools = {"tools": given["tools"]} if given.get("tools") else {}
    return read_preference({"prompt": given["messages"], **pair, **tools})
