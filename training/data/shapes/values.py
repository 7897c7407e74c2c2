"""Text, and lists that a file writes in one of several ways."""

from __future__ import annotations

import re
from typing import Any

from training.data.exact_json import parse_json
from training.data.problem import RowProblem, kind_of

_PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'")


def check_text(value: Any, where: str, *, may_be_empty: bool = False) -> str:
    """Return a value that is text.

    Raises:
        RowProblem: It is of another type, empty, or has half a surrogate pair.
    """
    if not isinstance(value, str):
        raise RowProblem(f"{where}: expected text, found {kind_of(value)}")
    if not may_be_empty and not value.strip():
        raise RowProblem(f"{where}: is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowProblem(
            f"{where}: character {error.start + 1} is half a surrogate pair; expected text"
        ) from None
    return value


def joined_text(content: Any, where: str) -> Any:
    """Return the text of a list of text parts, joined by line ends as vLLM joins them."""
    if not isinstance(content, list):
        return content
    texts = []
    for index, part in enumerate(content):
        text = part.get("text", part.get("value")) if isinstance(part, dict) else None
        if not isinstance(text, str):
            keys = isinstance(part, dict) and (part.get("type") or ", ".join(part))
            kind = keys or kind_of(part)
            raise RowProblem(f"{where}[{index}]: expected a part with text, found {kind}")
        texts.append(text)
    return "\n".join(texts)


def as_list(value: Any, where: str) -> Any:
    """Return a list that is written as JSON text, as an object of lists or as a list of texts.

    Raises:
        RowProblem: A text is not JSON.
    """
    value = parsed(value, where)
    if isinstance(value, list):
        return [parsed(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        lengths = {len(entries) for entries in value.values()}
        if len(lengths) == 1:
            return [
                {key: entry for key, entry in zip(value, entries, strict=True) if entry is not None}
                for entries in zip(*value.values(), strict=True)
            ]
    return value


def parsed(value: Any, where: str) -> Any:
    """Return the list or object that a JSON text is; another value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    require_json(value, where)
    try:
        return parse_json(value)
    except RowProblem as problem:
        raise RowProblem(f"field {where!r}: {problem}") from None


def require_json(text: str, where: str) -> None:
    """Check that a text is not a list of messages in Python's notation, as pandas writes one.

    Raises:
        RowProblem: It is one.
    """
    if _PYTHON_LIST.match(text) and text.rstrip().endswith("}]"):
        raise RowProblem(
            f"field {where!r}: the list is in Python's notation; expected JSON, as json.dumps "
            "writes it",
            hint="If the file is CSV: python3 -c 'import ast, csv, json, sys; [print(json.dumps({"
            f'**r, "{where}": ast.literal_eval(r["{where}"])}})) for r in csv.DictReader(sys.stdin)'
            "]' < FILE > NEW.jsonl"
            if where.isidentifier()
            else None,
        )
