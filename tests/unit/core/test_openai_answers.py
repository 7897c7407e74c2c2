"""Answers of status 200 that are not chat completions, through the openai client."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serving.chat import answers, converse
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError
from tuneline.core.openai_client import first_choice, openai_client
from tuneline.core.server_words import text_of

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
BASE = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}


def completion(content: object, finish: str = "stop", **more: object) -> dict[str, object]:
    message = {"role": "assistant", "content": content}
    return {**BASE, "choices": [{"index": 0, "finish_reason": finish, "message": message, **more}]}


class Server(ThreadingHTTPServer):
    replies: list[tuple[str, bytes, dict[str, str]]]

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.server_port}/v1", "m")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        kind, body, headers = self.server.replies.pop(0)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.replies = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(server: Server, body: bytes, kind: str = "application/json", **headers: str) -> str:
    server.replies.append((kind, body, headers))
    with openai_client(server.endpoint, timeout_s=20, max_retries=0) as client:
        response = client.chat.completions.create(model="m", messages=MESSAGES)
        return text_of(first_choice(response, server.endpoint).message.content)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"error": {"message": "backend not ready", "code": 503}}, "backend not ready"),
        ({"error": "out of memory"}, "out of memory"),
        ({"object": "error", "message": "no such adapter"}, "no such adapter"),
        ({"detail": "Not authenticated"}, "Not authenticated"),
        ({**BASE, "choices": []}, "chat.completion"),
        ({**BASE, "choices": [{"index": 0, "text": "plain"}]}, "plain"),
        (completion("", "error", error={"message": "provider died"}), "provider died"),
        ([1, 2], "[1, 2]"),
        (None, "null"),
    ],
)
def test_an_error_of_status_200_is_shown_in_the_servers_words(
    server: Server, document: object, words: str
) -> None:
    with pytest.raises(ServerError) as caught:
        ask(server, json.dumps(document).encode())
    assert words in caught.value.message
    assert caught.value.exit_code == 5
    assert server.endpoint.url in caught.value.message


def test_a_page_of_status_200_is_shown_without_control_characters(server: Server) -> None:
    with pytest.raises(ServerError) as caught:
        ask(server, b"<html>\x1b[31mPlease sign in</html>", "text/html")
    assert "Please sign in" in caught.value.message
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain", "plain"),
        ([{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}], "in parts"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "!"], "hm!"),
        (None, ""),
        ([], ""),
    ],
)
def test_content_is_text_or_parts(server: Server, content: object, text: str) -> None:
    assert ask(server, json.dumps(completion(content)).encode()) == text


def test_a_compressed_answer_is_read(server: Server) -> None:
    body = gzip.compress(json.dumps(completion("packed")).encode())
    assert ask(server, body, **{"Content-Encoding": "gzip"}) == "packed"


def stream(*documents: object) -> tuple[str, bytes, dict[str, str]]:
    events = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in documents]
    return "text/event-stream", b"".join(events) + b"data: [DONE]\n\n", {}


def delta(content: object, finish: str | None = None, **more: object) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish, **more}
    return {**BASE, "object": "chat.completion.chunk", "choices": [choice]}


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (stream({"error": {"message": "TimeoutError", "code": 504}}), "TimeoutError"),
        (stream({"error": "CUDA out of memory"}), "CUDA out of memory"),
        (stream(delta("a"), {"error": {"message": "died"}}), "died"),
        (stream(delta("", "error", error={"message": "provider died"})), "provider died"),
        (stream(delta("", "error")), "no reason given"),
        (stream(delta("Half"), delta("", "abort")), "finish_reason abort"),
        (stream(delta("Half")), "the stream ended without a finish_reason"),
    ],
)
def test_an_error_inside_a_stream_is_shown_and_the_conversation_goes_on(
    server: Server, reply: tuple[str, bytes, dict[str, str]], words: str
) -> None:
    parts = [{"type": "text", "text": "Good "}, {"type": "text", "text": "day."}]
    server.replies = [stream(delta(parts, "stop")), reply, stream(delta("Again.", "stop"))]
    questions = iter(["one", "two", "three", "/exit"])
    written: list[str] = []
    answered = converse(
        answers(server.endpoint), read=lambda _: next(questions), write=written.append
    )
    said = "".join(written)
    assert answered == 2
    assert "Good day." in said and "Again." in said
    assert words in said
    assert server.replies == []


def test_an_error_inside_the_first_answer_is_a_server_error(server: Server) -> None:
    server.replies = [stream({"error": {"message": "TimeoutError", "code": 504}})]
    with pytest.raises(ServerError, match="TimeoutError"):
        converse(answers(server.endpoint), read=lambda _: "one", write=lambda _: None)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_an_answer_of_reasoning_only_is_named(server: Server, name: str) -> None:
    """A parser of reasoning takes all of an answer that has no end of reasoning."""
    first, last = delta(None), delta(None, "length")
    first["choices"][0]["delta"][name] = "Let me see."  # type: ignore[index]
    server.replies = [stream(first, last)]
    with pytest.raises(ServerError, match=r"11 characters of reasoning and no text.* length"):
        "".join(answers(server.endpoint)([{"role": "user", "content": "one"}]))
