"""Answers from recorded reads: server-sent events, their tokens and their times. Pure.

An event takes the time of the read that brought its last byte. Format: the WHATWG HTML standard's
"server-sent events", with the payloads of OpenAI's streaming API.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.http1 import Framer, ProtocolError

DONE = b"[DONE]"
decode_json = json.JSONDecoder().decode


class SseDecoder:
    """Cuts a stream of bytes into the data of its events; keeps what is not complete."""

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Data of each event that these bytes complete; comments and empty events give none."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
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
    if carriage + 1 == len(data):
        return None  # a line feed may follow in the next read
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
        for time, read in zip(times, reads, strict=True):
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
    except ProtocolError as error:
        answer.error, answer.message = "protocol_error", str(error)
    answer.http_status = framer.status
    answer.text = "".join(texts)
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


def _take_event(answer: Answer, time: int, payload: bytes, texts: list[str] | None) -> None:
    if payload == DONE:
        answer.done = True
        return
    try:
        event = decode_json(payload.decode())
    except ValueError:  # also UnicodeDecodeError
        answer.error, answer.message = "invalid_sse", f"not JSON: {payload[:120]!r}"
        return
    if not isinstance(event, dict):
        answer.error, answer.message = "invalid_sse", f"not an object: {payload[:120]!r}"
        return
    choices = event.get("choices")
    if event.get("error") or event.get("object") == "error":
        answer.error, answer.message = "error_event", error_message(payload)
        return
    usage = event.get("usage")
    if usage is not None and isinstance(usage, dict):
        _take_usage(answer, usage)
    if not isinstance(choices, list) or not choices:
        return
    choice = choices[0]
    if not isinstance(choice, dict):
        answer.error, answer.message = "invalid_sse", f"not a choice: {payload[:120]!r}"
        return
    text = _text(choice)
    if text:
        answer.token_times.append(time)
        if isinstance(usage, dict) and answer.completion_tokens is not None:
            answer.token_counts.append(answer.completion_tokens)
        if texts is not None:
            texts.append(text)
    if choice.get("finish_reason") is not None:
        answer.finish_time = time
        answer.finish_reason = str(choice["finish_reason"])


def _text(choice: dict[str, Any]) -> str:
    """What an event adds to the answer; empty for a role or an empty delta."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return str(choice.get("text") or "")
    text = delta.get("content")
    if isinstance(text, str) and text:
        return text
    text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
    if not text and delta.get("tool_calls"):
        text = json.dumps(delta["tool_calls"])
    return str(text or "")


def _take_usage(answer: Answer, usage: dict[str, Any]) -> None:
    for name in ("completion_tokens", "prompt_tokens"):
        if isinstance(usage.get(name), int):
            setattr(answer, name, usage[name])
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
        answer.cached_tokens = details["cached_tokens"]


def error_message(body: bytes) -> str:
    """The message inside an error body, or its beginning."""
    text = body.decode(errors="replace").strip()
    try:
        found = json.loads(text)
    except ValueError:
        return text[:200]
    if isinstance(found, dict):
        error = found.get("error", found)
        if isinstance(error, dict):
            error = error.get("message", error)
        return str(error)[:200]
    return text[:200]


def _seconds(value: bytes | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None  # Retry-After may also be a date
