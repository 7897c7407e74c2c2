"""A server that answers conversations, keeps what it was asked, and misbehaves on demand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.integration.loadtest.client.quirks import DONE, event
from tuneline.core.endpoint import Endpoint

MAX_MESSAGES = 9
"""A longer conversation exceeds the context."""


@dataclass
class Asked:
    """One request, as the server saw it."""

    messages: list[dict[str, Any]]
    received_ns: int
    answered_ns: int = 0
    left: bool = False
    """The client was gone before the answer's end."""
    num_sent: int = 0
    """Tokens written."""


@dataclass
class TalkServer:
    """Answers with `num_tokens` words, `gap_s` apart; the last message says what goes wrong.

    Counts words as tokens, and finds a prompt's longest prefix that an earlier request had.
    """

    num_tokens: int = 4
    gap_s: float = 0.002
    has_cache: bool = True
    has_ids: bool = True
    """Sends token ids and log-probabilities where they are asked."""
    wrong_after: int | None = None
    """From this many requests on, the third token of a greedy answer is another."""
    logprob_error: float = 0.0
    first_ttft_s: float = 0.0
    """Added to the first sending of a prompt."""
    asked: list[Asked] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    sockets: list[socket.socket] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    is_dead: bool = False

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            if self.is_dead:
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets.append(sock)
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock: socket.socket) -> None:
        try:
            with sock, sock.makefile("rb") as stream:
                while line := stream.readline():
                    size = 0
                    while (header := stream.readline()) not in (b"\r\n", b""):
                        name, _, value = header.partition(b":")
                        size = int(value) if name.lower() == b"content-length" else size
                    body = stream.read(size)
                    received_ns = time.monotonic_ns()
                    if line.startswith(b"GET"):
                        self.page(sock, line)
                    elif not self.answer(sock, json.loads(body), received_ns):
                        return
        except OSError:
            return

    def page(self, sock: socket.socket, line: bytes) -> None:
        text = json.dumps({"data": [{"id": "m"}]})
        if b"/metrics" in line:
            names = {
                "generation_tokens_total": 0.0, "prompt_tokens_total": 0.0,
                "prefix_cache_queries_total": 0.0, "prefix_cache_hits_total": 0.0,
            }  # fmt: skip
            with self.lock:
                found = {**names, **self.counts}
            text = "".join(f'vllm:{name}{{model_name="m"}} {n}\n' for name, n in found.items())
            with self.lock:
                aborted = self.counts.get("aborted", 0.0)
            text += f'vllm:request_success_total{{finished_reason="abort"}} {aborted}\n'
            text += 'vllm:num_requests_running{model_name="m"} 0\n'
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n"
        sock.sendall((head + text).encode())

    def answer(self, sock: socket.socket, body: dict[str, Any], received_ns: int) -> bool:
        """Answer one request; return whether the connection goes on."""
        messages = body["messages"]
        asked = Asked(messages, received_ns)
        with self.lock:
            self.asked.append(asked)
        word = str(messages[-1]["content"]).split()[-1]
        if word == "die":
            self.die()
            return False
        if len(messages) > MAX_MESSAGES:
            words = f"This model's maximum context length is {MAX_MESSAGES} messages."
            self.document(sock, 400, {"error": {"message": words, "code": 400}})
            return True
        if word == "fail":
            self.document(sock, 500, {"error": {"message": "it failed"}})
            return True
        model = "m2" if word == "switch" else "m"
        number = 0 if word == "nothing" else min(self.num_tokens, body["max_tokens"])
        sock.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        num_prompt, num_cached = self.cached(messages)
        if num_cached < num_prompt:
            time.sleep(self.first_ttft_s)
        is_wrong = self.wrong_after is not None and len(self.asked) > self.wrong_after
        try:
            for place in range(number):
                time.sleep(self.gap_s)
                wrong = 1 if is_wrong and place == 2 else 0
                token = self.token(place, messages, model, number, wrong)
                if self.has_ids and body.get("return_token_ids"):
                    token |= {"prompt_token_ids": [1, 2, 3]} if place == 0 else {}
                    token["choices"][0] |= greedy(place, wrong, self.logprob_error)
                self.chunk(sock, event(token))
                asked.num_sent += 1
            usage = {
                "prompt_tokens": num_prompt, "completion_tokens": number,
                "prompt_tokens_details": {"cached_tokens": num_cached},
            }  # fmt: skip
            self.chunk(sock, event({"choices": [], "usage": usage}) + DONE)
            asked.answered_ns = time.monotonic_ns()
            self.count(asked, num_prompt, num_cached)
            sock.sendall(b"0\r\n\r\n")
        except OSError:
            asked.left = True
            self.count(asked, num_prompt, num_cached)
            with self.lock:
                self.counts["aborted"] = self.counts.get("aborted", 0.0) + 1
            return False
        return True

    def token(
        self, place: int, messages: list[Any], model: str, number: int, wrong: int
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0, "delta": {"content": word_of(len(messages), place, wrong)},
            "finish_reason": None,
        }  # fmt: skip
        if place == number - 1:
            choice["finish_reason"] = "length"
        return {"model": model, "choices": [choice]}

    def count(self, asked: Asked, num_prompt: int, num_cached: int) -> None:
        with self.lock:
            for name, n in (
                ("generation_tokens_total", asked.num_sent),
                ("prompt_tokens_total", num_prompt),
                ("prefix_cache_queries_total", num_prompt),
                ("prefix_cache_hits_total", num_cached),
            ):
                self.counts[name] = self.counts.get(name, 0.0) + n

    def cached(self, messages: list[dict[str, Any]]) -> tuple[int, int]:
        """Return the words of a prompt, and how many of them an earlier prompt began with."""
        words = " ".join(f"{one['role']} {one.get('content') or ''}" for one in messages).split()
        prefixes = [" ".join(words[: n + 1]) for n in range(len(words))]
        with self.lock:
            known = sum(prefix in self.seen for prefix in prefixes) if self.has_cache else 0
            self.seen.update(prefixes)
        return len(words), known

    def document(self, sock: socket.socket, status: int, document: Any) -> None:
        text = json.dumps(document)
        sock.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())

    def chunk(self, sock: socket.socket, data: bytes) -> None:
        sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def die(self) -> None:
        self.is_dead = True
        self.listener.close()
        for sock in self.sockets:
            sock.close()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.port}/v1", "m")


def word_of(num_messages: int, place: int, wrong: int = 0) -> str:
    return f"{'w' if wrong else 'r'}{num_messages}.{place} "


def greedy(place: int, wrong: int = 0, error: float = 0.0) -> dict[str, Any]:
    """The ids and log-probabilities of one token, as vLLM streams them."""
    token = 100 + place + 50 * wrong
    value = -0.5 - place / 10 + error
    top = [
        {"token": f"token_id:{token}", "logprob": value},
        {"token": "token_id:7", "logprob": -3.0},
    ]
    step = {"token": f"token_id:{token}", "logprob": value, "top_logprobs": top}
    return {"token_ids": [token], "logprobs": {"content": [step]}}


@contextmanager
def talk_server(**options: Any) -> Iterator[TalkServer]:
    server = TalkServer(**options)
    try:
        yield server
    finally:
        server.listener.close()
