"""A server whose verdicts on two answers are known by construction."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-of-the-judge"


@contextmanager
def judge(
    verdict: Callable[[str, str], str],
    status: int = 200,
    refused: Sequence[str] = (),
    failing: Collection[int] = (),
) -> Iterator[tuple[str, list[Any]]]:
    """Serve `verdict(first answer, second answer)`, and keep the requests.

    Args:
        refused: Parameters that are answered as OpenAI's reasoning models answer them.
        failing: Numbers of requests, from 1, that the server refuses.
    """
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({**body, "key": self.headers["Authorization"]})
            question = body["messages"][0]["content"]
            if "[Answer A]" not in question:
                question = "[Answer A]\n\n\n[Answer B]\n\n\nCompare"
            first = question.split("[Answer A]\n")[1].split("\n\n[Answer B]")[0]
            second = question.split("[Answer B]\n")[1].split("\n\nCompare")[0]
            message = {"role": "assistant", "content": verdict(first, second)}
            document = {
                "id": "1", "object": "chat.completion", "created": 0, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            }  # fmt: skip
            found = next((name for name in refused if name in body), None)
            error = {"message": f"bad key {KEY}"}
            if found is not None:
                error = {"message": f"Unsupported: '{found}'", "param": found}
            answered = 400 if found is not None or len(requests) in failing else status
            text = json.dumps(document if answered == 200 else {"error": error}).encode()
            self.send_response(answered)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def prefer_longer(first: str, second: str) -> str:
    return "Compared.\n" + ("[[A]]" if len(first) > len(second) else "[[B]]")
