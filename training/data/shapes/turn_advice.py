"""What to type for conversations whose turns are written in another way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from training.data.shapes.advice import EACH_ROW

SPEAKERS = ("speaker", "sender", "author", "participant", "user", "who", "type")
TEXTS = ("text", "message", "utterance", "body", "msg")
"""Names that exports of chats give to role and content."""
ANSWERERS = ("agent", "operator", "support", "advisor", "representative", "staff", "상담사")
"""Names of speakers that answer; others are taken for the user."""
PAIRS = (("input", "output"), ("human", "assistant"), ("user", "assistant"), ("user", "bot"),
         ("question", "answer"), ("prompt", "response"), ("instruction", "output"))  # fmt: skip
"""Keys of a turn that is a question with its answer."""


def in_each_row(where: str, change: str) -> str:
    """Return the command that changes the list of messages of every row of a JSON file."""
    return f"Try: jq -c '{EACH_ROW} | .{where.partition('[')[0]} |= {change}' FILE > NEW.jsonl"


def with_roles(turn: Mapping[str, Any], where: str) -> str | None:
    """Return what to type to give every turn a role and a content; None if no key is known."""
    for asked, answer in PAIRS:
        if asked in turn and answer in turn:
            texts = (("user", asked), ("assistant", answer))
            both = ", ".join(f'{{role: "{role}", content: .{key}}}' for role, key in texts)
            return in_each_row(where, f"map({both})")
    role = next((key for key in SPEAKERS if key in turn), None)
    content = next((key for key in ("content", *TEXTS) if key in turn), None)
    if role is None or content is None:
        return None
    speaker = f"{role}.role" if isinstance(turn[role], dict) else role
    text = f"{content}.parts[0]" if isinstance(turn[content], dict) else content
    return in_each_row(where, f"map({{role: .{speaker}, content: .{text}}})")


def of_texts(where: str) -> str:
    """Return what to type for a list of texts, the user's first."""
    role = 'if .key % 2 == 0 then "user" else "assistant" end'
    return in_each_row(where, f"(to_entries | map({{role: ({role}), content: .value}}))")


def of_text_calls(where: str) -> str:
    """Return what to type for results of calls that are text of the assistant's messages."""
    result = '{role: "user", content: (.content // .value)}'
    change = f'map(if (.role // .from) == "tool" then {result} else . end)'
    return (
        "If the call is text of the answer, as Hermes writes it, a result is a message of the "
        f"user: {in_each_row(where, change).removeprefix('Try: ')}"
    )


def with_role(key: str, named: Any, where: str) -> str | None:
    """Return what to type to give a speaker a role; None for a name that a shell could read."""
    if not isinstance(named, str) or not re.fullmatch(r"\w+", named):
        return None
    role = "assistant" if named.casefold() in ANSWERERS else "user"
    return in_each_row(where, f'map(if .{key} == "{named}" then .{key} = "{role}" else . end)')


def without_keys(keys: Sequence[str], where: str) -> str | None:
    """Return what to type to leave keys of every message out; None for keys that a shell could
    read."""
    if not all(re.fullmatch(r"\w+", key) for key in keys):
        return None
    left = ", ".join(f".{key}" for key in keys)
    command = in_each_row(where, f"map(del({left}))").removeprefix("Try: ")
    return f"To leave {' and '.join(keys)} out: {command}"
