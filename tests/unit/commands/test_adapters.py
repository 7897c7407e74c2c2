"""Errors of `tuneline adapters`, from a server of this test that answers as the middleware does."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import serving
from serving import list_adapters
from serving.adapters import client
from serving.middleware.asgi import error_body
from tests.commands import tuneline_here
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError

Serve = Callable[[int, dict[str, Any], float], Endpoint]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []
    is_over = threading.Event()

    def start(status: int, body: dict[str, Any], wait_s: float = 0.0) -> Endpoint:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_over.wait(wait_s)
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", "adapters", "k")

    yield start
    is_over.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "kind", "code", "message", "hint"),
    [
        (404, "NotFoundError", 404, "takes no adapters at run time", "Set serving.adapters"),
        (
            403, "PermissionDeniedError", "admin_key_required", "x is not an admin key",
            "tuneline keys add ops --file KEYS --admin",
        ),
    ],
)  # fmt: skip
def test_a_server_that_refuses_says_what_to_do(
    serve: Serve, status: int, kind: str, code: int | str, message: str, hint: str
) -> None:
    endpoint = serve(status, error_body(kind, "x is not an admin key", code), 0.0)
    with pytest.raises(ServerError, match=message) as caught:
        list_adapters(endpoint)
    assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 5


def test_a_client_that_waits_too_long_names_the_list(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.2)
    endpoint = serve(200, {"adapters": []}, 30.0)
    with pytest.raises(ServerError, match="may still be at work") as caught:
        list_adapters(endpoint)
    assert caught.value.hint == f"Try: tuneline adapters list {endpoint.url}"


def test_ctrl_c_names_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)  # the handler ends it

    monkeypatch.setattr(serving, "remove_adapter", interrupted)
    url = "http://127.0.0.1:1/v1"
    done = tuneline_here("adapters", "remove", url, "replies")
    assert done.returncode == 130
    assert f"Try: tuneline adapters list {url}" in done.stderr


def test_a_folder_that_is_not_an_artifact_is_named_as_it_is(tmp_path: Path) -> None:
    done = tuneline_here("adapters", "add", "http://127.0.0.1:1/v1", str(tmp_path), "--name", "x")
    assert done.returncode == 2
    assert f"{tmp_path}: has no manifest.json; expected an adapter artifact" in done.stderr
