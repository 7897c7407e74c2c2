"""The answers of the server of known delays: their bytes, their times, their faults."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

FAULTS = {
    "401": "status 401",
    "404": "status 404",
    "429": "status 429 with Retry-After: 2",
    "500": "status 500 with a JSON error",
    "503": "status 503 with a body that is not JSON",
    "stall": "the stream stops after two tokens and stays open",
    "silent": "no byte is ever sent",
    "reset": "the connection is reset after two tokens",
    "reset-early": "the connection is reset before the response",
    "cut": "the connection is closed after two tokens, without the last chunk",
    "no-done": "the response ends properly, but without [DONE]",
    "invalid-sse": "an event in the middle is not JSON",
    "error-event": "an error event in the middle, with status 200",
    "not-stream": "status 200 with a JSON document in place of a stream",
    "empty": "a whole stream without a token",
    "stop-only": "only the stop token: no text, a finish reason and a usage of one token",
    "no-usage": "no usage event, although the request asks for it",
    "not-http": "bytes that are not HTTP",
    "role-early": "an empty role delta at once, the first token at its usual time",
    "multi": "four tokens in each event",
    "split": "every event is sent in small pieces, cut inside characters",
    "length": "a body with Content-Length in place of chunks",
    "close": "a body that ends where the connection does",
    "crlf": "events with CRLF lines, comments between them",
    "few": "a document that lacks its last entry",
}
NUM_TOKENS_WITHOUT_TEXT = {"empty": 0, "stop-only": 1}
SPLIT_PAUSE_S = 0.001
TEXTS = (" 안녕", " token", " naïve", " 🙂", ' "quoted"', " end\\n")
TEXTS_AS_JSON = tuple(json.dumps(text, ensure_ascii=False).encode() for text in TEXTS)


@dataclass(frozen=True)
class Delays:
    """The delays that the server promises."""

    ttft_s: float
    itl_s: float
    num_tokens: int
    """Where the request has no max_tokens."""
    step_s: float
    """Above zero: all streams write together on ticks this far apart, as an engine's steps do."""
    one_at_a_time: bool = False
    """Streams wait for one another: the server holds 1/(ttft + rest) requests a second."""
    drift: float = 0.0
    """Seconds by which the TTFT grows per second of the server's life."""
    memory_mib: float = 1000.0
    """The memory that the server reports, and its growth."""
    leak_mib_per_s: float = 0.0
    num_kept: int = 0
    """Records of requests that the server keeps at least; 0 keeps all."""


@dataclass
class Truth:
    """The server's record of one request. Times are monotonic nanoseconds."""

    request_id: str
    fault: str | None
    received_ns: int
    """When the kernel had the whole request."""
    token_write_ns: list[int] = field(default_factory=list)
    """Of each event with text, just before its last bytes go to the kernel."""
    num_tokens: int = 0
    done_ns: int | None = None


class StreamServer(Protocol):
    delays: Delays
    model: str
    loop: asyncio.AbstractEventLoop
    num_running: int
    free_at_s: float
    epoch_s: float

    def when(self, time_s: float) -> float: ...


class StreamConnection(Protocol):
    is_open: bool

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    def reset(self) -> None: ...

    def response_done(self) -> None: ...


class Stream:
    """One answer being written."""

    def __init__(
        self, server: StreamServer, connection: StreamConnection, truth: Truth, body: dict[str, Any]
    ) -> None:
        self.server, self.connection, self.truth, self.body = server, connection, truth, body
        self.fault = truth.fault
        self.chat = "messages" in body
        asked = body.get("max_tokens") or body.get("max_output_tokens")
        self.total = int(asked or server.delays.num_tokens)
        options = body.get("stream_options") or {}
        self.usage = bool(options.get("include_usage")) and self.fault != "no-usage"
        self.continuous = bool(options.get("continuous_usage_stats"))
        self.sent = 0
        self.per_event = 4 if self.fault == "multi" else 1
        self.start_s = server.loop.time()
        if self.fault == "split":
            self.random = random.Random(truth.request_id)
        # The server shares its machine with the client that it calibrates. To save CPU, it builds
        # events that differ only in their text once.
        before, _, after = self.plain_text("\0").partition(b'"\\u0000"')
        self.text_events = [before + text + after for text in TEXTS_AS_JSON]
        self.text_chunks = [self.chunk(event) for event in self.text_events]

    def begin(self) -> None:
        self.server.num_running += 1
        if self.server.delays.one_at_a_time:
            # The queue is kept as the time at which the one before ends.
            delays = self.server.delays
            service_s = delays.ttft_s + delays.itl_s * (self.total - 1)
            self.start_s = max(self.start_s, self.server.free_at_s)
            self.server.free_at_s = self.start_s + service_s
        delays = self.server.delays
        if delays.ttft_s <= 0 and delays.itl_s <= 0 and self.fault is None:
            self.write_at_once()
            return
        if self.fault == "role-early":
            self.write(self.head() + self.chunk(self.plain_opening()))
        ttft_s = delays.ttft_s + delays.drift * (self.start_s - self.server.epoch_s)
        self.due_s = self.server.when(self.start_s + ttft_s)
        self.server.loop.call_at(self.due_s, self.step)

    def write_at_once(self) -> None:
        events = [self.token_event() for _ in range(self.total)]
        data = self.head() + b"".join(events) + self.tail()
        self.truth.token_write_ns = [time.monotonic_ns()] * self.total
        self.write(data)
        self.finish()

    def step(self) -> None:
        if not self.connection.is_open:
            self.server.num_running -= 1
            return
        if self.sent >= 2 and self.fault is not None and self.break_off():
            self.server.num_running -= 1
            return
        data = b""
        if self.sent == 0:
            data = b"" if self.fault == "role-early" else self.head()
            opening = b"" if self.fault == "role-early" else self.plain_opening()
            data += self.chunk(opening) if opening else b""
        event = b""
        if self.fault in NUM_TOKENS_WITHOUT_TEXT:
            self.sent = self.total
        else:
            event = self.token_event()
        if self.fault == "split":
            if data:
                self.write(data)
            self.write_split(event)
            return
        data += event
        if event or self.fault == "stop-only":
            self.truth.token_write_ns.append(time.monotonic_ns())
        self.write(data)
        self.proceed()

    def proceed(self) -> None:
        if self.sent >= self.total:
            self.write(self.tail())
            self.finish()
            return
        # From the promised time, not from now: lateness does not add up.
        self.due_s = self.server.when(self.due_s + self.server.delays.itl_s * self.per_event)
        self.server.loop.call_at(self.due_s, self.step)

    def write_split(self, data: bytes) -> None:
        """Write random small pieces, so that cuts fall inside characters, lines and chunk sizes."""
        size = self.random.randint(1, 40)
        if len(data) > size and self.connection.is_open:
            self.write(data[:size])
            self.server.loop.call_later(SPLIT_PAUSE_S, self.write_split, data[size:])
            return
        self.truth.token_write_ns.append(time.monotonic_ns())
        self.write(data)
        self.proceed()

    def break_off(self) -> bool:
        """Do what a fault says after two tokens; return whether that ends the stream."""
        if self.fault == "stall":
            return True
        if self.fault == "reset":
            self.connection.reset()
            return True
        if self.fault == "cut":
            self.connection.close()
            return True
        if self.fault == "invalid-sse":
            self.write(self.chunk(b'data: {"choices": [{"delta": {"content": "half\n\n'))
            self.fault = None
        elif self.fault == "error-event":
            error = {"error": {"message": "the engine died", "type": "Internal", "code": 500}}
            self.write(self.event(error) + self.chunk(b"data: [DONE]\n\n") + self.last_chunk())
            self.finish()
            return True
        return False

    def finish(self) -> None:
        self.truth.num_tokens = NUM_TOKENS_WITHOUT_TEXT.get(self.fault or "", self.sent)
        self.truth.done_ns = time.monotonic_ns()
        self.server.num_running -= 1
        self.connection.response_done()
        if self.fault == "close":
            self.connection.close()

    # --- bytes ---

    def head(self) -> bytes:
        lines = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        if self.fault == "close":
            return (lines + "Connection: close\r\n\r\n").encode()
        if self.fault == "length":
            events = b"".join(self.text_events[n % len(TEXTS)] for n in range(self.total))
            size = len(self.plain_opening() + events + self.plain_tail())
            return (lines + f"Content-Length: {size}\r\n\r\n").encode()
        return (lines + "Transfer-Encoding: chunked\r\n\r\n").encode()

    def write(self, data: bytes) -> None:
        self.connection.write(data)

    def token_event(self) -> bytes:
        if self.per_event == 1 and not self.continuous:
            self.sent += 1
            return self.text_chunks[(self.sent - 1) % len(TEXTS)]
        count = min(self.per_event, self.total - self.sent)
        text = "".join(TEXTS[(self.sent + place) % len(TEXTS)] for place in range(count))
        self.sent += count
        if not self.continuous:
            return self.chunk(self.plain_text(text))
        return self.event({**self.delta(content=text), "usage": self.usage_document()})

    def plain_opening(self) -> bytes:
        """Return the events before the first token."""
        return self.plain_event(self.delta(role="assistant", content="")) if self.chat else b""

    def plain_text(self, text: str) -> bytes:
        """Return an event with a text."""
        return self.plain_event(self.delta(content=text))

    def tail(self) -> bytes:
        return self.chunk(self.plain_tail()) + self.last_chunk()

    def plain_tail(self) -> bytes:
        finish = self.delta(content="")
        finish["choices"][0]["finish_reason"] = "stop" if self.fault == "stop-only" else "length"
        data = self.plain_event(finish)
        if self.usage:
            data += self.plain_event(
                {**self.common(), "choices": [], "usage": self.usage_document()}
            )
        return data if self.fault == "no-done" else data + self.ended(b"data: [DONE]")

    def event(self, document: dict[str, Any]) -> bytes:
        return self.chunk(self.plain_event(document))

    def plain_event(self, document: dict[str, Any]) -> bytes:
        return self.ended(b"data: " + json.dumps(document, ensure_ascii=False).encode())

    def ended(self, line: bytes) -> bytes:
        return line + b"\r\n\r\n: keep-alive\r\n\r\n" if self.fault == "crlf" else line + b"\n\n"

    def chunk(self, data: bytes) -> bytes:
        if self.fault in ("length", "close"):
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)

    def last_chunk(self) -> bytes:
        return b"" if self.fault in ("length", "close") else b"0\r\n\r\n"

    def delta(self, **delta: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        choice |= {"delta": delta} if self.chat else {"text": delta["content"]}
        return {**self.common(), "choices": [choice]}

    def common(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {
            "id": f"chatcmpl-{self.truth.request_id}",
            "object": kind,
            "created": 1700000000,
            "model": self.server.model,
        }

    def usage_document(self) -> dict[str, Any]:
        tokens = {**NUM_TOKENS_WITHOUT_TEXT, "length": self.total}
        num_tokens = tokens.get(self.fault or "", self.sent)
        return {
            "prompt_tokens": 7,
            "completion_tokens": num_tokens,
            "total_tokens": 7 + num_tokens,
        }
