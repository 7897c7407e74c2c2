"""The content of one response, whatever its route. Pure."""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tuneline.core.server_words import encodable

DONE = b"[DONE]"
MAX_DONE_BYTES = 16
"""Gateways put blanks around `[DONE]`; a longer payload is not stripped."""
MAX_COUNT = 2**53


@dataclass
class Answer:
    """The content of one response. Times are the reads' times, in their unit."""

    error: str | None = None
    """Class of failure; None for a whole answer."""
    message: str = ""
    """The server's words, shortened."""
    retry_after_s: float | None = None
    token_times: list[int] = field(default_factory=list)
    """Of each event that carries text, reasoning or a tool call."""
    token_counts: list[int] = field(default_factory=list)
    """Tokens so far at each of these events; empty unless the server says so in every event."""
    finish_time: int | None = None
    """Of the event with the finish reason."""
    finish_reason: str | None = None
    done: bool = False
    """`[DONE]` came."""
    without_done: bool = False
    """A whole answer without `[DONE]`: the finish reason came, and the end of the HTTP body."""
    completion_tokens: int | None = None
    """By the server's own usage."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    num_merged_events: int = 0
    """Token events that share a read with the one before: their own time is lost."""
    text: str = ""
    content: str = ""
    """The part of the text that a history has: no reasoning, refusal or tool call."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Names and arguments of the calls of tools, if texts are kept."""
    num_values: int | None = None
    """Vectors or scores of an answer of them."""
    model: str = ""
    """The model that the first event with choices names."""


class Events(ABC):
    """Takes the events of one response in their order, up to one that ends it. A route's own class
    reads what they say."""

    is_stream = True
    """False for a route whose answer is one document: it is the only event."""
    __slots__ = (
        "answer", "calls", "contents", "ended", "keeps_text", "num_taken", "places", "texts",
        "times",
    )  # fmt: skip

    def __init__(self, answer: Answer, times: Sequence[int], *, keeps_text: bool = True) -> None:
        self.answer, self.times, self.keeps_text = answer, times, keeps_text
        self.num_taken = 0
        self.ended = False
        self.texts: list[str] = []
        self.contents: list[str] = []
        self.places: list[int] = []
        """Place of the read that completed each event with text."""
        self.calls: dict[Any, list[str]] = {}
        """Name and arguments of each call of a tool, by its place in the answer."""

    def take(self, payload: bytes, place: int) -> None:
        """Put what an event says into the answer."""
        self.num_taken += 1
        if self.ended:
            return
        if payload == DONE or (len(payload) < MAX_DONE_BYTES and payload.strip() == DONE):
            self.answer.done = True
            return
        try:
            self.read(payload, place)
        # A ValidationError, too; and brackets in brackets in brackets.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.end("invalid_sse", f"{error}: {payload[:120]!r}")

    def take_alike(self, reads: Sequence[bytes], place: int, end: int) -> int:  # noqa: ARG002
        """Take reads from a place on by what they have in common with earlier reads; return the
        place of the first that was not taken. A route may know no such reads."""
        return place

    @abstractmethod
    def read(self, payload: bytes, place: int) -> None:
        """Read one event.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError, RecursionError: The event is broken.
        """

    def name_model(self, model: Any) -> None:
        """Take the name of the model from the first event that has one."""
        if not self.answer.model and isinstance(model, str):
            self.answer.model = encodable(model)

    def count(self, *, completion: Any = None, prompt: Any = None, cached: Any = None) -> None:
        """Put counts of a usage into the answer; a value that is not a count changes nothing."""
        answer = self.answer
        if (count := count_of(completion)) is not None:
            answer.completion_tokens = count
        if (count := count_of(prompt)) is not None:
            answer.prompt_tokens = count
        if (count := count_of(cached)) is not None:
            answer.cached_tokens = count

    def add(self, text: str, place: int, *, is_content: bool) -> None:
        """Take note of an event with a token."""
        self.places.append(place)
        if not self.keeps_text:
            return
        self.texts.append(text)
        if is_content:
            self.contents.append(text)

    def add_call(self, key: Any, name: Any, arguments: Any) -> None:
        """Add parts of a call of a tool; a server sends a name whole and arguments in pieces."""
        if not self.keeps_text:
            return
        call = self.calls.setdefault(key, ["", ""])
        call[0] += str(name or "")
        call[1] += arguments if isinstance(arguments, str) else json.dumps(arguments)

    def end(self, error: str, message: str) -> None:
        """Give the answer an error; what follows does not count."""
        self.ended = True
        if self.answer.error is None:
            self.answer.error, self.answer.message = error, message

    def settle(self) -> None:
        """Give the answer its calls and the times of its tokens."""
        self.answer.calls = [(name, arguments) for name, arguments in self.calls.values()]
        self.answer.token_times = [self.times[place] for place in self.places]
        self.answer.num_merged_events = len(self.places) - len(set(self.places))
        if not _are_counts(self.answer.token_counts, self.answer):
            self.answer.token_counts = []


def _are_counts(counts: Sequence[int], answer: Answer) -> bool:
    """Return whether the usage of each event counts the tokens so far. Some servers put another
    number into each event: 0, 1, or the tokens of the whole answer."""
    total = answer.completion_tokens
    if total is None or not counts or len(counts) != len(answer.token_times):
        return False
    ascends = all(before <= after for before, after in itertools.pairwise(counts))
    is_constant = len(counts) > 1 and counts[0] == counts[-1]
    return ascends and not is_constant and counts[0] > 0 and counts[-1] <= total


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a JSON object; none of another value."""
    return value if isinstance(value, dict) else {}


def count_of(value: Any) -> int | None:
    """Return a count of tokens; None for a value that is not one.

    Gateways written in Lua or JavaScript send 5.0 for 5, and some servers send -1 for unknown.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_COUNT or value != int(value):
        return None
    return int(value)
