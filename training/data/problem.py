"""The problem of one row, and the names of JSON types in messages."""

from __future__ import annotations

from typing import Any

from tuneline.core.shorten import shorten


class RowProblem(Exception):
    """The problem of one row; never leaves `training.data`.

    Attributes:
        hint: What to type, if that is known.
        is_of_file: Whether most rows of the file have the problem, so that one of them shows it.
    """

    def __init__(self, text: str, *, hint: str | None = None, is_of_file: bool = False) -> None:
        super().__init__(text)
        self.hint = hint
        self.is_of_file = is_of_file


def kind_of(value: Any) -> str:
    """Return the JSON type of a value, with its article."""
    if value is None:
        return "null"
    names = {
        bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list",
        dict: "an object",
    }  # fmt: skip
    return names.get(type(value), f"a {type(value).__name__}")


def excerpt(value: object) -> str:
    """Return the beginning of a value in quotes."""
    return shorten(repr(value), 60)
