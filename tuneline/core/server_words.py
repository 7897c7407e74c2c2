"""A server's own words, in a form that a terminal and a file can hold. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_CHARACTERS = 200

_names_context = re.compile(
    rb"context[_ ]length|context[_ ]size|context[_ ]window|maximum context|max_model_len"
    rb"|`inputs` tokens \+ `max_new_tokens`",
    re.IGNORECASE,
).search
"""Words of the servers in docs/servers.md for a prompt that is longer than the context."""


def error_message(body: bytes) -> str:
    """Return the message inside an error body, or its beginning."""
    text = body.decode(errors="replace").strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return printable(text[:MAX_CHARACTERS])
    if isinstance(found, dict):
        error = found.get("error", found.get("detail", found))
        if isinstance(error, dict):
            error = error.get("message", error)
        text = str(error)
    return printable(text[:MAX_CHARACTERS])


def names_context(body: bytes) -> bool:
    """Return whether an error says that the prompt is longer than the context."""
    return _names_context(body) is not None


def printable(text: str | bytes) -> str:
    """Return text without control characters, which could drive a terminal."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    shown = (
        one if one.isprintable() else " " if one.isspace() else "\ufffd" for one in encodable(text)
    )
    return "".join(shown)


def encodable(text: str) -> str:
    """Return text that UTF-8 can hold: JSON can name half of a surrogate pair."""
    return text.encode(errors="replace").decode()


def text_of(content: Any) -> str:
    """Return the text of a message's content: a text, or parts, which may hold parts themselves."""
    if not isinstance(content, list):
        return str(content or "")
    found = []
    for part in content:
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, dict):
            inner = part.get("text") or part.get("thinking")
            found.append(text_of(inner) if isinstance(inner, str | list) else "")
    return "".join(found)
