"""The shapes that a row can have, and the rows that they make.

A new shape is one file with a function, and one row here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from training.data.problem import RowProblem
from training.data.row import Row
from training.data.shapes.advice import CLASSES, PAIRS, advise, name_columns
from training.data.shapes.alpaca import read_alpaca
from training.data.shapes.compared import read_arena, read_compared
from training.data.shapes.conversation import read_messages, read_sharegpt
from training.data.shapes.fields import check_fields, unpack_dataset, with_label
from training.data.shapes.gemini import read_gemini
from training.data.shapes.openai_pairs import read_openai_pairs
from training.data.shapes.plain import read_prompt, read_text
from training.data.shapes.preference import read_preference, read_swift_pairs
from training.data.shapes.prompt_completion import read_labelled, read_prompt_completion
from training.data.shapes.retrieval import NUMBERED, POSITIVES, read_retrieval
from training.data.shapes.turns import as_messages
from training.data.shapes.values import require_json


@dataclass(frozen=True)
class Shape:
    """The columns of a shape, and what they make.

    Attributes:
        required: Columns that every row of the shape has.
        optional: Columns that the shape reads if they are there.
        read: The columns of one row, without those that are null, -> the row. Raises RowProblem.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Row]


_CHAT = ("system", "system_prompt", "tools", "functions")
_REASONED = ("reasoning_content", *_CHAT)

SHAPES = {
    "alpaca": Shape(("instruction", "output"), ("input", "history", *_REASONED), read_alpaca),
    "prompt-completion": Shape(("prompt", "completion"), _REASONED, read_prompt_completion),
    "messages": Shape(("messages",), _CHAT, read_messages),
    "sharegpt": Shape(("conversations",), _CHAT, read_sharegpt),
    "preference": Shape(
        ("chosen", "rejected"),
        ("prompt", "messages", "conversations", "instruction", "input", "history", *_CHAT),
        read_preference,
    ),
    "swift-preference": Shape(("messages", "rejected_response"), _CHAT, read_swift_pairs),
    "gemini": Shape(
        ("contents",), ("systemInstruction", "system_instruction", "tools"), read_gemini
    ),
    "openai-preference": Shape(
        ("input", "preferred_output", "non_preferred_output"), (), read_openai_pairs
    ),
    "compared": Shape(("prompt", "response_a", "response_b", "winner"), _CHAT, read_compared),
    "arena": Shape(("conversation_a", "conversation_b", "winner"), (), read_arena),
    "label": Shape(("prompt", "completion", "label"), _REASONED, read_labelled),
    "retrieval": Shape(("query", "positive"), ("negative", "negatives", *NUMBERED), read_retrieval),
    "retrieval-lists": Shape(("query", "positives"), ("negatives",), read_retrieval),
    "triplet": Shape(("anchor", "positive"), ("negative", *NUMBERED), read_retrieval),
    "flag-embedding": Shape(("query", "pos"), ("neg",), read_retrieval),
    "tevatron": Shape(("query", "positive_passages"), ("negative_passages",), read_retrieval),
    "prompt": Shape(("prompt",), _CHAT, read_prompt),
    "text": Shape(("text",), (), read_text),
}
SINGLE = ("prompt", "text")
"""Shapes of one column that other shapes may have as an extra one; the first wins."""
ANSWERS = (
    "completion", "chosen", "rejected", "output", "response", "completions", "responses",
    "response.responses", "response_a", "response_b",
)  # fmt: skip
"""Columns that no row of a single column has, unless `data.shape` says so."""
NEAR = 0.83
MOST_NAMED = 12
"""Most columns that a message names."""
"""The similarity from which a name is taken for a misspelling of another."""
_TYPES = {"messages": "a list of messages", "conversations": "a list of messages"}


def read_shape(columns: Mapping[str, Any], shape: str | None = None) -> Row:
    """Return the row that a file's columns make; `fields` has the columns that it does not use.

    Args:
        columns: Values by the name of their column.
        shape: The name of the only shape that the row may have; any shape if not given.

    Raises:
        RowProblem: Columns are missing, misspelt or of another type, or fit two shapes.
    """
    columns, others = unpack_dataset(columns)
    given = {name: value for name, value in columns.items() if value is not None}
    asked = shape
    if shape == "label" and "prompt" not in given:
        shape = None  # the label of messages, or of Alpaca's columns
    name, problem, hint = _find_shape(tuple(columns), tuple(given), shape)
    if problem:
        raise RowProblem(problem, hint=hint, is_of_file=True)
    found = SHAPES[name]
    known = (*found.required, *found.optional)
    used = {
        name: given[name]
        for name in known
        if name in given and not (name in found.optional and _is_empty(given[name]))
    }
    try:
        row = found.read(_with_messages(used))
    except RowProblem as error:
        if str(error).startswith("missing field 'prompt'"):
            error.hint = advise(tuple(columns), ["prompt"])
        raise
    row = replace(row, fields={k: v for k, v in columns.items() if k not in known})
    check_fields(row, asked)
    row = with_label(row, asked)
    if asked == "label" and row.label is None:
        raise RowProblem("missing field 'label'", hint=advise(tuple(columns), ["label"]))
    return replace(row, fields={**row.fields, **others}) if others else row


def _is_empty(value: Any) -> bool:
    return value in ([], {}) or (isinstance(value, str) and not value.strip())


def _with_messages(columns: dict[str, Any]) -> dict[str, Any]:
    """Return columns with messages in place of the JSON text of messages.

    A model may learn to write such a text, so an answer is messages only with a prompt of messages,
    or with another answer of messages.
    """
    prompt = columns.get("prompt")
    if isinstance(prompt, str):
        require_json(prompt, "prompt")
    read = {"prompt": as_messages(prompt)} if prompt is not None else {}
    pair = [as_messages(columns.get(name)) for name in ("chosen", "rejected")]
    if all(isinstance(answer, list) for answer in pair):
        read |= dict(zip(("chosen", "rejected"), pair, strict=True))
    if "completion" in columns and isinstance(read.get("prompt"), list):
        read["completion"] = as_messages(columns["completion"])
    return columns | read


@lru_cache(maxsize=4096)
def _find_shape(
    columns: tuple[str, ...], given: tuple[str, ...], shape: str | None
) -> tuple[str, str, str | None]:
    """Return the shape of rows with these columns, of which `given` are not null.

    Returns:
        The shape, and no problem; or no shape, the problem, and what to type.
    """
    names = [shape] if shape else list(SHAPES)
    complete = [name for name in names if set(SHAPES[name].required) <= set(given)]
    if shape is None and set(ANSWERS) & set(columns):
        complete = [name for name in complete if name not in SINGLE]
        names = [name for name in names if name not in SINGLE]
    kind = next((name for name in given if name.casefold() in CLASSES), None)
    if shape is None and complete == ["text"] and kind is not None:
        hint = (
            f"Try: {name_columns({'prompt': 'text', 'completion': kind})}; or data.shape: text, "
            "which trains the text without it."
        )
        return "", f"columns 'text' and {kind!r}: plain text has no {kind}", hint
    widest = [name for name in complete if not any(_covers(other, name) for other in complete)]
    if len(widest) > 1:
        fitting = ", ".join(widest)
        problem = f"the columns fit {len(widest)} shapes: {fitting}; choose one as data.shape"
        return "", problem, f"Try: data.shape: {widest[0]}, or --shape {widest[0]}"
    if not widest:
        return "", *_missing(columns, given, names)
    problems = _misspelt(columns, widest[0], 0.75)
    return widest[0], "; ".join(problems), None


def _covers(wide: str, narrow: str) -> bool:
    """Return whether rows with the columns of both shapes have the wide one."""
    if narrow in SINGLE:
        return wide != narrow and wide not in SINGLE[SINGLE.index(narrow) :]
    shape, required = SHAPES[wide], set(SHAPES[narrow].required)
    return required <= {*shape.required, *shape.optional} and not set(shape.required) <= required


def _missing(
    columns: tuple[str, ...], given: tuple[str, ...], names: list[str]
) -> tuple[str, str | None]:
    """Return what a row lacks of the shape that it has most of, and what to type; near spellings
    count half."""

    def fit(name: str) -> float:
        required = SHAPES[name].required
        if SHAPES[name].read is read_retrieval and not set(POSITIVES) & set(columns):
            return 0.0  # `query` is also a name of a prompt
        near = [column for column in columns if column not in required and _near(column, required)]
        exact = sum(column in required for column in columns)
        known = sum(column in SHAPES[name].optional for column in columns)
        return (exact + len(near) / 2 + known / 10) / len(required) if exact or near else 0.0

    best = max(names, key=fit)
    if not fit(best) and columns and len(names) > 1:
        wanted = "; ".join(" and ".join(SHAPES[name].required) for name in names)
        found = ", ".join(map(repr, columns[:MOST_NAMED]))
        if len(columns) > MOST_NAMED:
            found += f" and {len(columns) - MOST_NAMED:,} more"
        return (
            f"no shape has the columns {found}; expected one of: {wanted}",
            PAIRS if len(columns) > MOST_NAMED else advise(columns, ("prompt", "completion")),
        )
    absent = [name for name in SHAPES[best].required if name not in given]
    problems = _misspelt(columns, best, NEAR) + [
        f"field {name!r}: expected {_TYPES.get(name, 'text')}, found null"
        if name in columns
        else f"missing field {name!r}"
        for name in absent
    ]
    wholly = [name for name in absent if name not in columns]
    return "; ".join(problems), advise(columns, wholly) if wholly else None


def _misspelt(columns: tuple[str, ...], shape: str, cutoff: float) -> list[str]:
    known = (*SHAPES[shape].required, *SHAPES[shape].optional)
    absent = [name for name in known if name not in columns]
    near = {name: _near(name, absent, cutoff) for name in columns if name not in known}
    return [
        f"unknown field {name!r} (did you mean {found[0]}?)"
        for name, found in near.items()
        if found
    ]


def _near(name: str, known: Sequence[str], cutoff: float = NEAR) -> list[str]:
    # `response` is not a misspelling of `response_a`.
    sided = [one for one in known if name[-2:-1] == "_" or not one.endswith(("_a", "_b"))]
    return difflib.get_close_matches(name.casefold(), sided, n=1, cutoff=cutoff)
