"""Two answers and a verdict: `response_a`, `response_b`, `winner`, or whole conversations.

LMSYS's Chatbot Arena and most tools for comparing models write this form. A tie has no better
answer: such a row cannot be read, and `data.bad_rows: drop` counts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.problem import RowProblem, excerpt
from training.data.row import Row
from training.data.shapes.preference import read_preference

TIES = ("tie", "both", "neither", "none", "equal", "draw", "same")


def read_compared(row: Mapping[str, Any]) -> Row:
    """Return the row of `{"prompt", "response_a", "response_b", "winner"}`."""
    return _read(row, "response")


def read_arena(row: Mapping[str, Any]) -> Row:
    """Return the row of `{"conversation_a", "conversation_b", "winner"}`."""
    return _read(row, "conversation")


def _read(row: Mapping[str, Any], name: str) -> Row:
    winner = row["winner"]
    word = winner.strip().casefold() if isinstance(winner, str) else ""
    names = {side: (side, f"model_{side}", f"{name}_{side}", f"answer_{side}") for side in "ab"}
    better = next((side for side, known in names.items() if word in known), None)
    if better is None:
        is_tie = word.startswith(TIES)
        why = "no answer is better" if is_tie else "expected a, b, model_a, model_b or tie"
        raise RowProblem(f"field 'winner': {excerpt(winner)}: {why}")
    worse = "b" if better == "a" else "a"
    pair = {"chosen": row[f"{name}_{better}"], "rejected": row[f"{name}_{worse}"]}
    rest = {key: row[key] for key in row if key not in (f"{name}_a", f"{name}_b", "winner")}
    return read_preference({**rest, **pair})
