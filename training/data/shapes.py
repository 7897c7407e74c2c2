"""The shapes that a row can have: which fields, and the chat and the answer they make."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from training.data.row import Row
from tuneline.core.messages import Message

# Fields of the three shapes a row can have: required first, then optional ones.
SHAPES = {
    "instruction": (("instruction", "output"), ("input",)),
    "prompt": (("prompt", "completion"), ()),
    "messages": (("messages",), ()),
}


class RowProblem(Exception):
    """The problem of one row; never leaves `training.data`."""


def read_shape(fields: dict[str, Any], line: int) -> Row:
    """Return the row that a file's fields make.

    Raises:
        RowProblem: Fields are missing, unknown or of another kind.
    """
    shape = _find_shape(fields)
    _check_fields(fields, shape)
    prompt, answer = _READERS[shape](fields)
    completion: Message = {"role": "assistant", "content": answer}
    return Row(tuple(prompt), (completion,), line=line)


def _find_shape(row: dict[str, Any]) -> str:
    """The shape whose fields this row has most of; a near spelling counts half."""

    def fit(shape: str) -> float:
        known = [name for names in SHAPES[shape] for name in names]
        exact = sum(name in row for name in known)
        near = sum(bool(_near(name, known)) for name in row if name not in known)
        return exact + near / 2

    return max(SHAPES, key=fit)


def _near(name: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.6)


def _check_fields(row: dict[str, Any], shape: str) -> None:
    required, optional = SHAPES[shape]
    known = [*required, *optional]
    found = []
    for name in row:
        if name not in known:
            near = _near(name, [field for field in known if field not in row])
            suggestion = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            found.append(f"unknown field {name!r} ({suggestion})")
    found += [f"missing field {name!r}" for name in required if name not in row]
    if found:
        raise RowProblem("; ".join(found))


def _from_instruction(row: dict[str, Any]) -> tuple[list[Message], str]:
    instruction = _text(row, "instruction")
    extra = _text(row, "input", may_be_empty=True) if "input" in row else ""
    content = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return [{"role": "user", "content": content}], _text(row, "output")


def _from_prompt(row: dict[str, Any]) -> tuple[list[Message], str]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        if len(completion) != 1:
            raise RowProblem(f"field 'completion': expected one message, found {len(completion)}")
        return _from_messages({"messages": prompt + completion})
    return [{"role": "user", "content": _text(row, "prompt")}], _text(row, "completion")


def _from_messages(row: dict[str, Any]) -> tuple[list[Message], str]:
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise RowProblem(
            f"field 'messages': expected a list of messages, found {kind_of(messages)}"
        )
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise RowProblem(f"{where}: expected an object, found {kind_of(message)}")
        if sorted(message) != ["content", "role"]:
            raise RowProblem(f"{where}: expected role and content, found {', '.join(message)}")
        if message["role"] not in ("system", "user", "assistant"):
            raise RowProblem(
                f"{where}: role {message['role']!r}; expected system, user or assistant"
            )
        _text(message, "content", where=f"{where}.content")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
        raise RowProblem(
            f"messages: roles are {', '.join(roles)}; expected an optional system message, then "
            "user and assistant in turn, the assistant last"
        )
    return messages[:-1], messages[-1]["content"]


_READERS: dict[str, Callable[[dict[str, Any]], tuple[list[Message], str]]] = {
    "instruction": _from_instruction,
    "prompt": _from_prompt,
    "messages": _from_messages,
}


def _text(
    row: dict[str, Any], name: str, *, may_be_empty: bool = False, where: str | None = None
) -> str:
    value = row[name]
    field = where or f"field {name!r}"
    if not isinstance(value, str):
        raise RowProblem(f"{field}: expected text, found {kind_of(value)}")
    if not may_be_empty and not value.strip():
        raise RowProblem(f"{field}: is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowProblem(
            f"{field}: character {error.start + 1} is half a surrogate pair; expected text"
        ) from None
    return value


def kind_of(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object")
