"""The openai client against a server of this process, behind proxy variables that lead nowhere."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadtest.calibration.certificate import write_certificate
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError
from tuneline.core.openai_client import async_openai_client, openai_client

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
ANSWER = {
    "id": "1", "object": "chat.completion", "created": 0, "model": "m",
    "choices": [
        {
            "index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Good day."},
        }
    ],
}  # fmt: skip


class Server(ThreadingHTTPServer):
    reply: tuple[int, str] = (200, json.dumps(ANSWER))
    keys: list[str]

    scheme = "http"

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"{self.scheme}://127.0.0.1:{self.server_port}/v1", "m")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Authorization"])
        status, text = self.server.reply
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, nowhere)
        monkeypatch.setenv(name.lower(), nowhere)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "meant-for-another-server")
    server = Server(("127.0.0.1", 0), Handler)
    server.keys = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(endpoint: Endpoint) -> str | None:
    with openai_client(endpoint, timeout_s=20, max_retries=0) as client:
        answer = client.chat.completions.create(model=endpoint.model, messages=MESSAGES)
        return answer.choices[0].message.content


async def ask_asynchronously(endpoint: Endpoint) -> str | None:
    async with async_openai_client(endpoint, timeout_s=20, max_retries=0) as client:
        answer = await client.chat.completions.create(model=endpoint.model, messages=MESSAGES)
        return answer.choices[0].message.content


def test_both_clients_reach_loopback_behind_proxy_variables(server: Server) -> None:
    assert ask(server.endpoint) == "Good day."
    assert asyncio.run(ask_asynchronously(server.endpoint)) == "Good day."
    assert len(server.keys) == 2
    assert "meant-for-another-server" not in "".join(server.keys)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((401, '{"error": {"message": "no"}}'), "needs a key; none was sent"),
        ((404, '{"error": {"message": "no such model"}}'), "model 'm': .*no such model"),
        ((429, '{"error": {"message": "busy"}}'), "status 429: .*busy"),
        ((200, "{not json"), "is not a chat completion"),
    ],
)
def test_errors_are_said_in_our_words(server: Server, reply: tuple[int, str], said: str) -> None:
    server.reply = reply
    with pytest.raises(ServerError, match=said) as caught:
        ask(server.endpoint)
    assert caught.value.message.startswith(server.endpoint.url)
    with pytest.raises(ServerError, match=said):
        asyncio.run(ask_asynchronously(server.endpoint))


def test_a_server_that_does_not_listen_cannot_be_reached(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        endpoint = Endpoint(f"http://127.0.0.1:{unused.getsockname()[1]}/v1", "m")
    with pytest.raises(ServerError, match="cannot be reached"):
        ask(endpoint)


def test_tls_with_a_private_authority(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.scheme = "https"

    def ask() -> str | None:
        with openai_client(server.endpoint, timeout_s=10, max_retries=0) as client:
            answer = client.chat.completions.create(model="m", messages=MESSAGES)
        return answer.choices[0].message.content

    with pytest.raises(ServerError, match="its certificate is not trusted") as refused:
        ask()
    assert "SSL_CERT_FILE" in str(refused.value)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert ask() == "Good day."
