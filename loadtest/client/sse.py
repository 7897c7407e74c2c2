"""Answers from recorded reads: server-sent events, their tokens and their times. Pure.

An event takes the time of the read that brought its last byte. Format: the WHATWG HTML standard's
"server-sent events", with the payloads of OpenAI's streaming API.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loadtest.client.http1 import Framer, ProtocolError, size_line
from loadtest.client.sse_decoder import SseDecoder
from tuneline.core.server_words import (
    encodable,
    error_message,
    names_context,
    printable,
    text_of,
)

DONE = b"[DONE]"
MAX_DONE_BYTES = 16
"""Gateways put blanks around `[DONE]`; a longer payload is not stripped."""
MAX_COUNT = 2**53
READS_PER_STEP = 64
"""A step takes about 0.2 ms."""


class _Delta(msgspec.Struct, gc=False):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: Any = None
    finish_reason: Any = None
    error: Any = None


class _Usage(msgspec.Struct, gc=False):
    completion_tokens: Any = None
    prompt_tokens: Any = None
    prompt_tokens_details: Any = None


class _Event(msgspec.Struct, gc=False):
    """The fields that are read from an event; the decoder skips all others."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    model: Any = None


class _BareError(msgspec.Struct):
    """The fields of an event that is an error as a whole."""

    object: Any = None
    code: Any = None
    message: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_bare_error = msgspec.json.Decoder(_BareError).decode
_decode_text = msgspec.json.Decoder(str).decode
_event_chunk = re.compile(rb"([0-9a-fA-F]{1,8})\r\ndata: (.*+)\n\n\r\n").fullmatch
"""A chunk that is one event of one line: its size and its payload."""
_AROUND_PAYLOAD = len(b"data: \n\n")


@dataclass
class Answer:
    """The content of one response. Times are the reads' times, in their unit."""

    error: str | None = None
    """Class of failure; None for a whole answer."""
    message: str = ""
    """The server's words, shortened."""
    http_status: int = 0
    retry_after_s: float | None = None
    token_times: list[int] = field(default_factory=list)
    """Of each event that carries text, reasoning or a tool call."""
    token_counts: list[int] = field(default_factory=list)
    """Tokens so far at each of these events, where the server says so in every event."""
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
    model: str = ""
    """The model that the first event with choices names."""


def parse_response(
    times: Sequence[int], reads: Sequence[bytes], *, closed: bool = False, keep_text: bool = False
) -> Answer:
    """Take a recorded response apart.

    Args:
        times: Time of each read.
        reads: The bytes of each read, from the status line on.
        closed: The peer closed the connection after the last read.
        keep_text: Whether `Answer.text` is wanted.
    """
    steps = parse_steps(times, reads, closed=closed, keep_text=keep_text)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def parse_steps(
    times: Sequence[int], reads: Sequence[bytes], *, closed: bool, keep_text: bool
) -> Generator[None, None, Answer]:
    """Do the work of `parse_response` in steps of READS_PER_STEP reads."""
    answer = Answer()
    framer, decoder = Framer(), SseDecoder()
    events = _Events(answer, times)
    body: list[bytes] = []
    at_boundary = False  # between two chunks and between two events
    try:
        for place, read in enumerate(reads):
            if place and place % READS_PER_STEP == 0:
                yield
            if at_boundary:
                if events.take_alike(read, place):
                    continue
                if (chunk := _event_chunk(read)) is not None:
                    size, payload = chunk.groups()
                    if int(size, 16) == len(payload) + _AROUND_PAYLOAD and b"\r" not in payload:
                        events.take(payload, place)
                        continue
            pieces: list[bytes] = []
            framer.feed(read, pieces)
            if framer.status != 200:
                body += pieces
                continue
            for piece in pieces:
                if not events.num_taken and len(body) < 4:
                    body.append(piece[:400])
                for payload in decoder.feed(piece):
                    events.take(payload, place)
            at_boundary = events.num_taken > 0 and framer.between_chunks and decoder.between_events
    except ProtocolError as error:
        answer.error, answer.message = "protocol_error", str(error)
    events.settle()
    answer.http_status = framer.status
    if keep_text:
        answer.text = encodable("".join(events.texts))
        answer.content = encodable("".join(events.contents))
    if answer.error is None:
        whole = framer.close() if closed else framer.complete
        _find_failure(answer, framer, body, whole=whole, is_stream=events.num_taken > 0)
    return answer


def _find_failure(
    answer: Answer, framer: Framer, body: list[bytes], *, whole: bool, is_stream: bool
) -> None:
    """Give the answer its class of failure, where the response is not a good one.

    Args:
        whole: Whether the response came to its end.
        is_stream: Whether it held an event.
    """
    # A stop token is an answer of its own, and comes with the finish reason.
    only_stop = answer.finish_time is not None and answer.completion_tokens
    has_token = bool(answer.token_times or only_stop)
    coding = framer.headers.get(b"content-encoding", b"identity").strip().lower()
    if framer.status and framer.status != 200:
        answer.error = f"http_{framer.status}"
        answer.message = error_message(b"".join(body))
        answer.retry_after_s = _seconds(framer.headers.get(b"retry-after"))
        if framer.status in (400, 413, 422) and names_context(b"".join(body)):
            answer.error = "context_exceeded"
    elif not framer.status:
        answer.error = "connection_reset"
        answer.message = "the connection ended before the response began"
    elif answer.done:
        if not has_token:
            answer.error, answer.message = "empty_answer", "the stream held no token"
    elif coding not in (b"identity", b""):
        answer.error = "compressed_body"
        answer.message = f"compressed ({printable(coding)}), although the request asks for identity"
    elif not whole:
        answer.error = "truncated_stream"
        answer.message = f"the connection ended after {len(answer.token_times)} token events"
    elif not is_stream:
        answer.error = "not_a_stream"
        answer.message = error_message(b"".join(body))
    elif framer.is_delimited and answer.finish_time is not None and has_token:
        answer.without_done = True
    else:
        answer.error = "truncated_stream"
        answer.message = f"no [DONE] after {len(answer.token_times)} token events"


class _Events:
    """Takes the events of one response in their order, up to one that ends it."""

    __slots__ = (
        "after", "alike_is_content", "answer", "before", "contents", "ended", "num_taken", "places",
        "texts", "times",
    )  # fmt: skip

    def __init__(self, answer: Answer, times: Sequence[int]) -> None:
        self.answer, self.times = answer, times
        self.num_taken = 0
        self.ended = False
        self.texts: list[str] = []
        self.contents: list[str] = []
        self.places: list[int] = []
        """Place of the read that completed each event with text."""
        self.before: bytes | None = None
        self.after = b""
        """The bytes around the text of an event, with its quotes. Most events of a response differ
        only in the text."""
        self.alike_is_content = False

    def take_alike(self, read: bytes, place: int) -> bool:
        """Take a read that is one chunk with one event and differs from an earlier one in its text.

        Returns:
            Whether the read was taken.
        """
        before = self.before
        if before is None or self.ended:
            return False
        begin = size_line(len(read)) + before
        if not read.startswith(begin) or not read.endswith(self.after):
            return False
        try:
            text = _decode_text(read[len(begin) - 1 : 1 - len(self.after)])
        except (msgspec.DecodeError, UnicodeDecodeError):  # not one string, or a broken one
            return False
        if not text:
            return False
        self.texts.append(text)
        if self.alike_is_content:
            self.contents.append(text)
        self.places.append(place)
        return True

    def take(self, payload: bytes, place: int) -> None:
        """Put what an event says into the answer."""
        self.num_taken += 1
        answer = self.answer
        if self.ended:
            return
        if payload == DONE or (len(payload) < MAX_DONE_BYTES and payload.strip() == DONE):
            answer.done = True
            return
        try:
            event = _decode(payload)
            is_error = event.error or (event.choices is None and _is_error(payload))
        # A ValidationError, too; and brackets in brackets in brackets.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.end("invalid_sse", f"{error}: {payload[:120]!r}")
            return
        if is_error:
            self.end("error_event", error_message(payload))
            return
        usage = event.usage
        if usage is not None:
            _take_usage(answer, usage)
        if not event.choices:
            return
        if not answer.model and isinstance(event.model, str):
            answer.model = encodable(event.model)
        choice = event.choices[0]
        text = _text_of(choice)
        if text:
            self.places.append(place)
            self.texts.append(text)
            is_content = choice.delta is None or bool(choice.delta.content)
            if is_content:
                self.contents.append(text)
            if usage is not None and (so_far := count_of(usage.completion_tokens)) is not None:
                answer.token_counts.append(so_far)
        if choice.finish_reason is not None:
            answer.finish_time = self.times[place]
            answer.finish_reason = str(choice.finish_reason)
            if answer.finish_reason == "abort":
                self.end("aborted", "the server gave the answer up (abort)")
            elif answer.finish_reason == "error":
                # OpenRouter puts the provider's words into the choice.
                words = json.dumps({"error": choice.error}) if choice.error else "no reason given"
                said = error_message(words.encode())
                self.end("error_event", f"finish_reason is error: {said}")
        elif text and usage is None and self.before is None:
            self.learn(payload, text)

    def learn(self, payload: bytes, text: str) -> None:
        """Find the place of the text in an event, and prove it by putting another text there."""
        before, quoted, after = payload.partition(b'"%b"' % text.encode(errors="replace"))
        if not quoted or b"\n" in payload:
            return
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            choices = _decode(before + b'"\\u0001"' + after).choices
            if choices and _text_of(choices[0]) == "\u0001":
                self.alike_is_content = choices[0].delta is None or bool(choices[0].delta.content)
                self.before, self.after = b'data: %b"' % before, b'"%b\n\n\r\n' % after

    def end(self, error: str, message: str) -> None:
        self.ended = True
        if self.answer.error is None:
            self.answer.error, self.answer.message = error, message

    def settle(self) -> None:
        self.answer.token_times = [self.times[place] for place in self.places]
        self.answer.num_merged_events = len(self.places) - len(set(self.places))


def _is_error(payload: bytes) -> bool:
    """Whether an event without choices is an error as a whole.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError: One of these fields is broken.
    """
    event = _decode_bare_error(payload)
    return event.object == "error" or (event.code is not None and event.message is not None)


def _text_of(choice: _Choice) -> str:
    """Return the text that an event adds to the answer."""
    delta = choice.delta
    if delta is None:
        return str(choice.text or "")
    text = delta.content or delta.reasoning_content or delta.reasoning or delta.refusal
    if not text and (call := delta.tool_calls or delta.function_call):
        text = json.dumps(call)
    return text_of(text)


def _take_usage(answer: Answer, usage: _Usage) -> None:
    if (count := count_of(usage.completion_tokens)) is not None:
        answer.completion_tokens = count
    if (count := count_of(usage.prompt_tokens)) is not None:
        answer.prompt_tokens = count
    details = usage.prompt_tokens_details
    if isinstance(details, dict) and (count := count_of(details.get("cached_tokens"))) is not None:
        answer.cached_tokens = count


def count_of(value: Any) -> int | None:
    """Return a count of tokens; None for a value that is not one.

    Gateways written in Lua or JavaScript send 5.0 for 5, and some servers send -1 for unknown.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_COUNT or value != int(value):
        return None
    return int(value)


def _seconds(value: bytes | None) -> float | None:
    try:
        seconds = float(value or b"nan")
    except ValueError:
        return None  # Retry-After may also be a date
    return seconds if math.isfinite(seconds) else None
