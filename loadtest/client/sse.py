"""Answers from recorded reads: server-sent events, their tokens and their times. Pure.

An event takes the time of the read that brought its last byte. Format: the WHATWG HTML standard's
"server-sent events", with the payloads of OpenAI's streaming API.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Sequence

from loadtest.client.answer import Answer, Events
from loadtest.client.http1 import Framer, ProtocolError
from loadtest.client.sse_decoder import SseDecoder
from loadtest.routes.table import ROUTES
from tuneline.core.server_words import encodable, error_message, names_context, printable

MAX_WITHOUT_TEXT = 4
"""Tokens without a text: a stop token, and those that hold bytes of one unfinished character."""
READS_PER_STEP = 64
"""A step takes about 0.2 ms."""


_event_chunk = re.compile(rb"([0-9a-fA-F]{1,8})\r\ndata: (.*+)\n\n\r\n").fullmatch
"""A chunk that is one event of one line: its size and its payload."""
_AROUND_PAYLOAD = len(b"data: \n\n")


def parse_response(
    times: Sequence[int],
    reads: Sequence[bytes],
    *,
    closed: bool = False,
    keep_text: bool = False,
    route: str = "chat",
) -> Answer:
    """Take a recorded response apart.

    Args:
        times: Time of each read.
        reads: The bytes of each read, from the status line on.
        closed: The peer closed the connection after the last read.
        keep_text: Whether `Answer.text` is wanted.
        route: The route that was asked, a key of ROUTES.
    """
    steps = parse_steps(times, reads, closed=closed, keep_text=keep_text, route=route)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def parse_steps(
    times: Sequence[int], reads: Sequence[bytes], *, closed: bool, keep_text: bool, route: str
) -> Generator[None, None, Answer]:
    """Do the work of `parse_response` in steps of READS_PER_STEP reads."""
    answer = Answer()
    framer, decoder = Framer(), SseDecoder()
    events = ROUTES[route].events(answer, times, keeps_text=keep_text)
    body: list[bytes] = []
    at_boundary = False  # between two chunks and between two events
    try:
        next_place, step_end = 0, READS_PER_STEP
        while next_place < len(reads):
            if next_place >= step_end:
                step_end += READS_PER_STEP
                yield
            if at_boundary:
                alike_end = events.take_alike(reads, next_place, step_end)
                if alike_end > next_place:
                    next_place = alike_end
                    continue
            place, read = next_place, reads[next_place]
            next_place += 1
            if at_boundary and (chunk := _event_chunk(read)) is not None:
                size, payload = chunk.groups()
                if int(size, 16) == len(payload) + _AROUND_PAYLOAD and b"\r" not in payload:
                    events.take(payload, place)
                    continue
            pieces: list[bytes] = []
            framer.feed(read, pieces)
            if framer.status != 200 or not events.is_stream:
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
    whole = framer.close() if closed else framer.complete
    if not events.is_stream and whole and framer.status == 200 and not _coding(framer):
        events.take(b"".join(body), len(reads) - 1)
    events.settle()
    if keep_text:
        answer.text = encodable("".join(events.texts))
        answer.content = encodable("".join(events.contents))
    if answer.error is None:
        _find_failure(answer, framer, body, whole=whole, events=events)
    return answer


def _find_failure(
    answer: Answer, framer: Framer, body: list[bytes], *, whole: bool, events: Events
) -> None:
    """Give the answer its class of failure, if the response is not a good one.

    Args:
        whole: Whether the response came to its end.
        events: The events that were read from it.
    """
    # A stop token is an answer of its own, and comes with the finish reason.
    num_tokens = answer.completion_tokens or 0
    only_stop = answer.finish_time is not None and 0 < num_tokens <= MAX_WITHOUT_TEXT
    has_token = bool(answer.token_times) or only_stop or answer.num_values is not None
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
            if num_tokens:
                answer.message = f"the stream held no text; its usage counts {num_tokens} tokens"
    elif coding := _coding(framer):
        answer.error = "compressed_body"
        answer.message = f"compressed ({printable(coding)}), although the request asks for identity"
    elif not whole:
        answer.error = "truncated_stream"
        answer.message = f"the connection ended after {len(answer.token_times)} token events"
        if not events.is_stream:
            answer.message = "the connection ended before the answer did"
    elif not events.num_taken:
        answer.error = "not_a_stream"
        answer.message = error_message(b"".join(body))
    elif framer.is_delimited and answer.finish_time is not None and has_token:
        answer.without_done = True
    else:
        answer.error = "truncated_stream"
        answer.message = f"no [DONE] after {len(answer.token_times)} token events"


def _coding(framer: Framer) -> bytes:
    """Return how a body is compressed; empty if it is not."""
    coding = framer.headers.get(b"content-encoding", b"").strip().lower()
    return b"" if coding == b"identity" else coding


def _seconds(value: bytes | None) -> float | None:
    try:
        seconds = float(value or b"nan")
    except ValueError:
        return None  # Retry-After may also be a date
    return seconds if math.isfinite(seconds) else None
