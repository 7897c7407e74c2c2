"""A server that answers as vLLM behind the middleware does, with answers that are known."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.integration.release.line import continuations
from tuneline.core.reference import Continuation

KEY = "key-of-the-tests"


@dataclass
class ModelServer:
    """The model behind a port-forward.

    Attributes:
        digest: The model's digest that the server states.
        name: The run's name.
        noise: Nats by which its log-probabilities, or its scores of better answers, differ.
    """

    digest: str
    name: str = "support-tickets"
    noise: float = 0.0
    key: str = KEY
    port: int = 0
    paths: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        return [self.name, f"{self.name}@{self.digest.removeprefix('sha256:')[:12]}"]

    def find(self, messages: list[dict[str, str]]) -> Continuation:
        return next(one for one in continuations(self.noise) if one.messages == messages)


@contextmanager
def model_server(digest: str, **options: Any) -> Iterator[ModelServer]:
    """Run a model server for the block."""
    model = ModelServer(digest, **options)

    class Bound(Handler):
        server_model = model

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    model.port = server.server_address[1]
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    server_model: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        model = self.server_model
        model.paths.append(self.path)
        if self.path == "/ready":
            self._send(200, {"status": "ready", "name": model.name, "digest": model.digest})
        elif self._is_known() and self.path == "/v1/models":
            data = [{"id": name, "object": "model"} for name in model.names()]
            self._send(200, {"object": "list", "data": data})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server_model.paths.append(self.path)
        if self._is_known() and self.path == "/pooling":
            # The scores of the line of a reward model: 2 for the better answer, 1 - n for another.
            ((which, number),) = body["input"]
            score = 2.0 + self.server_model.noise if which == 1 else 1.0 - number
            self._send(200, {"data": [{"data": [score]}]})
        elif self._is_known():
            found = self.server_model.find(body["messages"])
            self._send(200, completion(found, body["model"]))

    def _is_known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.server_model.key}":
            return True
        self._send(401, {"error": {"message": "The key is missing.", "code": 401}})
        return False

    def _send(self, code: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def completion(found: Continuation, model: str) -> Any:
    """Return a chat completion with token ids and log-probabilities, as vLLM writes it."""
    steps = [
        {
            "token": f"token_id:{token}", "logprob": value, "bytes": None,
            "top_logprobs": [
                {"token": f"token_id:{other}", "logprob": its, "bytes": None}
                for other, its in top.items()
            ],
        }
        for token, value, top in zip(
            found.token_ids, found.logprobs, found.top_logprobs, strict=True
        )
    ]  # fmt: skip
    choice = {
        "index": 0, "message": {"role": "assistant", "content": found.text},
        "finish_reason": found.finish_reason, "logprobs": {"content": steps},
        "token_ids": found.token_ids,
    }  # fmt: skip
    return {
        "id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice],
        "prompt_token_ids": found.prompt_token_ids,
    }  # fmt: skip
