"""One JSON array of objects, read one element at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from training.data.exact_json import parse_json_at
from training.data.problem import RowProblem, kind_of

CHUNK_BYTES = 1 << 20
WHITE_SPACE = " \t\r\n"
LONGEST_WORD = 16
"""More characters than a token that is cut at the end of a buffer can hide, other than a text."""
LISTS = "Write objects. Try: jq -c '.[] | {prompt: .[0], completion: .[1]}' FILE > NEW.jsonl"


def begins_with_array(stream: Any) -> bool:
    """Return whether the first character of a buffered stream, after white space, is `[`."""
    return bool(stream.peek(256)[:256].lstrip()[:1] == b"[")


def read_array(stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any] | RowProblem]]:
    """Return each element's number, from 1, and its object or its problem.

    No more than one element and one chunk are in memory. Reading ends at the first error of syntax,
    since nothing after it has a known place.
    """
    buffer = _Buffer(stream)
    number = 1
    try:
        buffer.skip("[")
        while buffer.next_character() != "]" or number > 1:
            value = buffer.value()
            if not isinstance(value, dict | RowProblem):
                value = RowProblem(
                    f"expected a JSON object, found {kind_of(value)}",
                    hint=LISTS if isinstance(value, list) else None,
                )
            yield number, value
            number += 1
            if buffer.next_character() == "]":
                break
            buffer.skip(",")
        buffer.skip("]")
        if buffer.next_character():
            raise RowProblem(f"line {buffer.line()}: text after the end of the array")
    except RowProblem as problem:
        yield number, problem


class _Buffer:
    """The part of a file that is decoded and not yet parsed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.at, self.lines_before, self.is_whole = "", 0, 1, False

    def line(self, offset: int = 0) -> int:
        """Return the line of the file, from 1, that the next character is on."""
        return self.lines_before + self.text.count("\n", 0, self.at + offset)

    def fill(self) -> bool:
        """Read at least one more chunk; return whether there was any."""
        self.lines_before += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :], 0
        # An element that is longer than the buffer doubles it, so that it is parsed few times.
        data = self.stream.read(max(CHUNK_BYTES, len(self.text)))
        self.is_whole = not data
        try:
            self.text += self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise RowProblem(
                f"line {self.line()} or after: not UTF-8 text ({error.reason})"
            ) from None
        return bool(data)

    def next_character(self) -> str:
        """Return the next character that is not white space, without going past it."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in WHITE_SPACE:
                    return self.text[self.at]
                self.at += 1
            if self.is_whole or not self.fill():
                return ""

    def skip(self, expected: str) -> None:
        found = self.next_character()
        if found != expected:
            raise RowProblem(
                f"line {self.line()}: not valid JSON: expected {expected!r}, "
                f"found {found!r}" if found else
                f"line {self.line()}: the file ends inside the array; expected {expected!r}"
            )  # fmt: skip
        self.at += 1

    def value(self) -> Any:
        """Return the next value, or the problem of a value whose end is known.

        Raises:
            RowProblem: The syntax is wrong.
        """
        self.next_character()
        while True:
            try:
                value, end = parse_json_at(self.text, self.at)
                if end < len(self.text) or self.is_whole:
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or (
                    error.pos >= len(self.text) - LONGEST_WORD
                )
                if self.is_whole or not is_cut:
                    line = self.lines_before + self.text.count("\n", 0, error.pos)
                    raise RowProblem(f"line {line}: not valid JSON: {error.msg}") from None
            except (ValueError, RecursionError) as error:
                raise RowProblem(f"line {self.line()}: not valid JSON: {error}") from None
            self.fill()
