"""Answers from recorded reads: server-sent events, their tokens and their times. Pure.

An event takes the time of the read that brought its last byte. Format: the WHATWG HTML standard's
"server-sent events", with the payloads of OpenAI's streaming API.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from loadtest.http1 import Framer, ProtocolError

DONE = b"[DONE]"
BOM = b"\xef\xbb\xbf"


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: Any = None
    finish_reason: Any = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    prompt_tokens_details: Any = None


class _Event(msgspec.Struct):
    """What is read of an event; a decoder that knows it passes over the rest."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: Any = None
    code: Any = None
    message: Any = None


decode_event = msgspec.json.Decoder(_Event).decode


class SseDecoder:
    """Cuts a stream of bytes into the data of its events; keeps what is not complete."""

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[bytes] = []
        self._at_start = True
        self._after_return = False
        """The last read ended in a carriage return: a line feed that follows is no line's end."""

    @property
    def between_events(self) -> bool:
        return not self._pending and not self._data

    def feed(self, data: bytes) -> list[bytes]:
        """Data of each event that these bytes complete; comments and empty events give none."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        if self._at_start:
            if len(data) < len(BOM) and BOM.startswith(data):
                self._pending = data
                return []
            self._at_start = False
            data = data.removeprefix(BOM)
        if self._after_return and data:
            self._after_return = False
            data = data.removeprefix(b"\n")
        # The common case: whole events of one data line each.
        if not self._data and data.endswith(b"\n\n") and b"\r" not in data:
            blocks = data[:-2].split(b"\n\n")
            if all(block.startswith(b"data: ") and b"\n" not in block for block in blocks):
                return [block[6:] for block in blocks]
        return self._feed_lines(data)

    def _feed_lines(self, data: bytes) -> list[bytes]:
        events: list[bytes] = []
        position = 0
        while True:
            line_end = _line_end(data, position)
            if line_end is None:
                self._pending = data[position:]
                return events
            line, position = data[position : line_end[0]], line_end[1]
            self._after_return = position == len(data) and data.endswith(b"\r")
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            # Other fields (event, id, retry) and comments carry no token.


def _line_end(data: bytes, start: int) -> tuple[int, int] | None:
    """Where the line from `start` ends and the next begins; None when its end is not here yet."""
    newline = data.find(b"\n", start)
    carriage = data.find(b"\r", start, newline if newline >= 0 else len(data))
    if carriage < 0:
        return None if newline < 0 else (newline, newline + 1)
    return carriage, carriage + 2 if data[carriage + 1 : carriage + 2] == b"\n" else carriage + 1


@dataclass
class Answer:
    """What one response held. Times are those of the reads, in the reads' own unit."""

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
    completion_tokens: int | None = None
    """By the server's own usage."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    num_merged_events: int = 0
    """Token events that share a read with the one before: their own time is lost."""
    text: str = ""


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
    answer = Answer()
    framer, decoder = Framer(), SseDecoder()
    body: list[bytes] = []
    num_events = 0
    texts: list[str] = []
    kept = texts if keep_text else None
    token_times = answer.token_times
    try:
        at_boundary = False  # between two chunks and between two events
        for time, read in zip(times, reads, strict=True):
            if at_boundary and (payload := _event_of_chunk(read)) is not None:
                num_events += 1
                if answer.error is None:
                    _take_event(answer, time, payload, kept)
                continue
            pieces: list[bytes] = []
            framer.feed(read, pieces)
            if framer.status != 200:
                body += pieces
                continue
            num_before = len(token_times)
            for piece in pieces:
                if num_events == 0 and len(body) < 4:
                    body.append(piece[:400])
                for payload in decoder.feed(piece):
                    num_events += 1
                    if answer.error is None:
                        _take_event(answer, time, payload, kept)
            if len(token_times) - num_before > 1:
                answer.num_merged_events += len(token_times) - num_before - 1
            at_boundary = num_events > 0 and framer.between_chunks and decoder.between_events
    except ProtocolError as error:
        answer.error, answer.message = "protocol_error", str(error)
    answer.http_status = framer.status
    answer.text = _encodable("".join(texts))
    if answer.error is not None:
        return answer
    whole = framer.close() if closed else framer.complete
    if framer.status and framer.status != 200:
        answer.error = f"http_{framer.status}"
        answer.message = error_message(b"".join(body))
        answer.retry_after_s = _seconds(framer.headers.get(b"retry-after"))
    elif not framer.status:
        answer.error = "connection_reset"
        answer.message = "the connection ended before the response began"
    elif answer.done:
        if not answer.token_times and not answer.completion_tokens:
            answer.error, answer.message = "empty_answer", "the stream held no token"
    elif not whole:
        answer.error = "truncated_stream"
        answer.message = f"the connection ended after {len(answer.token_times)} token events"
    elif num_events == 0:
        answer.error = "not_a_stream"
        answer.message = error_message(b"".join(body))
    else:
        answer.error = "truncated_stream"
        answer.message = f"no [DONE] after {len(answer.token_times)} token events"
    return answer


def _event_of_chunk(read: bytes) -> bytes | None:
    """The payload, where a read is what most are: one chunk that is one event of one line."""
    head, line_break, data = read.partition(b"\r\n")
    if not (line_break and data.startswith(b"data: ") and data.endswith(b"\n\n\r\n")):
        return None
    payload = data[6:-4]
    if b"\n" in payload or b"\r" in payload:
        return None
    return payload if head.lower() == b"%x" % (len(data) - 2) else None


def _take_event(answer: Answer, time: int, payload: bytes, texts: list[str] | None) -> None:
    if payload == DONE:
        answer.done = True
        return
    try:
        event = decode_event(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is the former
        answer.error, answer.message = "invalid_sse", f"{error}: {payload[:120]!r}"
        return
    is_error = event.choices is None and event.code is not None and event.message is not None
    if event.error or event.object == "error" or is_error:
        answer.error, answer.message = "error_event", error_message(payload)
        return
    usage = event.usage
    if usage is not None:
        _take_usage(answer, usage)
    if not event.choices:
        return
    choice = event.choices[0]
    text = _text(choice)
    if text:
        answer.token_times.append(time)
        if usage is not None and usage.completion_tokens is not None:
            answer.token_counts.append(usage.completion_tokens)
        if texts is not None:
            texts.append(text)
    if choice.finish_reason is not None:
        answer.finish_time = time
        answer.finish_reason = str(choice.finish_reason)
        if answer.finish_reason == "abort":
            answer.error, answer.message = "aborted", "the server gave the answer up (abort)"


def _text(choice: _Choice) -> str:
    """What an event adds to the answer; empty for a role or an empty delta."""
    delta = choice.delta
    if delta is None:
        return str(choice.text or "")
    text = delta.content
    if isinstance(text, str) and text:
        return text
    text = text or delta.reasoning_content or delta.reasoning
    if not text and delta.tool_calls:
        text = json.dumps(delta.tool_calls)
    return str(text or "")


def _take_usage(answer: Answer, usage: _Usage) -> None:
    if usage.completion_tokens is not None:
        answer.completion_tokens = usage.completion_tokens
    if usage.prompt_tokens is not None:
        answer.prompt_tokens = usage.prompt_tokens
    details = usage.prompt_tokens_details
    if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
        answer.cached_tokens = details["cached_tokens"]


def error_message(body: bytes) -> str:
    """The message inside an error body, or its beginning; text that UTF-8 can hold."""
    text = body.decode(errors="replace").strip()
    try:
        found = json.loads(text)
    except ValueError:
        return text[:200]
    if isinstance(found, dict):
        error = found.get("error", found)
        if isinstance(error, dict):
            error = error.get("message", error)
        return _encodable(str(error)[:200])
    return text[:200]


def _encodable(text: str) -> str:
    """JSON can name half of a surrogate pair, which no file can hold."""
    return text.encode(errors="replace").decode()


def _seconds(value: bytes | None) -> float | None:
    try:
        seconds = float(value or b"nan")
    except ValueError:
        return None  # Retry-After may also be a date
    return seconds if math.isfinite(seconds) else None
