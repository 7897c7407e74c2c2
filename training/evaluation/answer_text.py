"""Answers as text: split into fields, and into tokens of any language."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Literal

from tuneline.core.messages import bare_answer

FieldForm = Literal["lines", "json"]

_COLON = re.compile("[:\uff1a]")
"""A colon, or the wide one of Chinese and Japanese text."""
# Letters of scripts that put no blanks between words, and Hangul syllables, whose words carry
# particles: each is a token.
_SINGLE = re.compile(
    "[\u0e00-\u0edf\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)


def split_fields(answer: str, fields: FieldForm) -> dict[str, Any]:
    """Return an answer's fields by name; empty if it has none. The first line of a name counts."""
    bare = bare_answer(answer)
    if fields == "json":
        try:
            value = json.loads(bare)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}
    found: dict[str, Any] = {}
    for line in bare.split("\n"):
        name, *value = _COLON.split(line, maxsplit=1)
        if value and name.strip():
            found.setdefault(name.strip(), value[0].strip())
    return found


def same_json(first: Any, second: Any) -> bool:
    """Return whether two JSON values are equal; true is not 1, and 1.0 is 1."""
    try:
        return _same(first, second)
    except RecursionError:
        return False


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return (type(first) is type(second) and first == second) or (
        isinstance(first, int | float) and isinstance(second, int | float) and first == second
    )


def text_tokens(text: str) -> list[str]:
    """Return the tokens that ROUGE-L compares, in lower case and composed form (NFC).

    A token is a word of letters, marks and digits. Chinese and Japanese characters, Hangul
    syllables, and letters of Thai, Lao, Burmese and Khmer are single tokens.
    """
    words = ""
    for character in unicodedata.normalize("NFC", text).casefold():
        if unicodedata.category(character)[0] not in "LMN":
            words += " "
        elif _SINGLE.match(character):
            words += f" {character} "
        else:
            words += character
    return words.split()
