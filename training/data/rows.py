"""Reading rows from JSON Lines and checking every one; all problems are shown at once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.core.errors import DataError
from tuneline.core.messages import Message

NUM_PROBLEMS_SHOWN = 20

# Fields of the three shapes a row can have: required first, then optional ones.
SHAPES = {
    "instruction": (("instruction", "output"), ("input",)),
    "prompt": (("prompt", "completion"), ()),
    "messages": (("messages",), ()),
}


@dataclass(frozen=True)
class Row:
    """One training example: the chat up to the last user turn, and the answer to it."""

    prompt: tuple[Message, ...]
    answer: str
    line: int
    """Where it stands in its file, from 1."""

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, the answer last."""
        return [*self.prompt, {"role": "assistant", "content": self.answer}]

    def as_json(self) -> dict[str, Any]:
        """TRL's conversational prompt-completion form."""
        completion = [{"role": "assistant", "content": self.answer}]
        return {"prompt": list(self.prompt), "completion": completion}


class _Problem(Exception):
    """What is wrong with one line; never leaves this module."""


def read_rows(path: Path, *, system_prompt: str | None = None) -> list[Row]:
    """Read and check a data file.

    Raises:
        DataError: The file is missing, empty or no JSON Lines, or rows cannot be used. Each problem
            reads `file: line N: problem`; the first twenty are shown, then a count.
    """
    data = _read(path)
    problems, rows = [], []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            prompt, answer = _parse(line)
        except _Problem as problem:
            problems.append(f"{path}: line {number}: {problem}")
            continue
        if system_prompt is not None and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": system_prompt}, *prompt]
        rows.append(Row(tuple(prompt), answer, number))
    if problems:
        raise DataError(_shortened(problems), hint=_hint(data))
    if not rows:
        raise DataError(
            f"{path}: is empty; expected one JSON object on each line",
            hint='Such as: {"instruction": "…", "input": "…", "output": "…"}',
        )
    return rows


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected the training data",
            hint="Set data.path in run.yaml; it is relative to the run.yaml.",
        ) from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory; expected a JSON Lines file") from None
    except PermissionError:
        raise DataError(f"{path}: may not be read; check its permissions") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - NUM_PROBLEMS_SHOWN
    if more <= 0:
        return problems
    return [*problems[:NUM_PROBLEMS_SHOWN], f"… and {more} more lines with problems"]


def _hint(data: bytes) -> str | None:
    if data.lstrip().startswith(b"["):
        return (
            "The file begins with '[': if it is one JSON array, make JSON Lines of it: "
            "jq -c '.[]' FILE > FILE.jsonl"
        )
    return None


def _parse(line: bytes) -> tuple[list[Message], str]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Problem(f"byte {error.start + 1}: not UTF-8 text ({error.reason})") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise _Problem(f"column {error.colno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise _Problem(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise _Problem(f"expected a JSON object, found {_kind(value)}")
    shape = _shape(value)
    _check_fields(value, shape)
    return _READERS[shape](value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Problem(f"field {twice!r} stands twice")
    return result


def _shape(row: dict[str, Any]) -> str:
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
        raise _Problem("; ".join(found))


def _from_instruction(row: dict[str, Any]) -> tuple[list[Message], str]:
    instruction = _text(row, "instruction")
    extra = _text(row, "input", may_be_empty=True) if "input" in row else ""
    content = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return [{"role": "user", "content": content}], _text(row, "output")


def _from_prompt(row: dict[str, Any]) -> tuple[list[Message], str]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        if len(completion) != 1:
            raise _Problem(f"field 'completion': expected one message, found {len(completion)}")
        return _from_messages({"messages": prompt + completion})
    return [{"role": "user", "content": _text(row, "prompt")}], _text(row, "completion")


def _from_messages(row: dict[str, Any]) -> tuple[list[Message], str]:
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise _Problem(f"field 'messages': expected a list of messages, found {_kind(messages)}")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise _Problem(f"{where}: expected an object, found {_kind(message)}")
        if sorted(message) != ["content", "role"]:
            raise _Problem(f"{where}: expected role and content, found {', '.join(message)}")
        if message["role"] not in ("system", "user", "assistant"):
            raise _Problem(f"{where}: role {message['role']!r}; expected system, user or assistant")
        _text(message, "content", where=f"{where}.content")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
        raise _Problem(
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
        raise _Problem(f"{field}: expected text, found {_kind(value)}")
    if not may_be_empty and not value.strip():
        raise _Problem(f"{field}: is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Problem(
            f"{field}: character {error.start + 1} is half a surrogate pair, which is no text"
        ) from None
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object")
