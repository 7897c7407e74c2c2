"""Clients that hold connections without a whole request. The server is uvicorn on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 0.5
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(params=["httptools", "h11"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    settings = {"header_timeout_s": TIMEOUT_S, "body_timeout_s": 20}
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps(settings))
    module = "tests.integration.serving.middleware.serving_app"
    with subprocess.Popen(
        [sys.executable, "-m", module, request.param], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(65536) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def test_slow_and_silent_connections_are_closed_and_others_are_not(url: str) -> None:
    silent = [connect(url) for _ in range(30)]
    slow = [connect(url) for _ in range(20)]
    for connection in slow:
        connection.sendall(HEAD)
    at_work = connect(url)
    body = json.dumps({"model": "tuned", "messages": [{"content": "wait"}]}).encode()
    at_work.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    began_s = time.monotonic()
    held = [*silent, *slow]
    while any(is_open(connection) for connection in held):
        assert time.monotonic() - began_s < 60
        for connection in slow:
            # One more line each time: the header never ends. It may be closed by now.
            with suppress(OSError):
                connection.send(b"x: 1\r\n")
        assert httpx.get(f"{url}/v1/models").status_code == 200
        time.sleep(0.05)
    assert time.monotonic() - began_s >= TIMEOUT_S
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    (closed,) = (f for f in families if f.name == "tuneline_idle_connections_closed")
    assert closed.samples[0].value >= len(held)
    # A request in progress is not idle, however long its answer takes.
    time.sleep(2 * TIMEOUT_S)
    assert at_work.recv(10) == b"HTTP/1.1 2"
    assert is_open(at_work)
    for connection in (*held, at_work):
        connection.close()


def test_a_connection_is_kept_between_requests(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        for _ in range(4):
            assert client.get("/v1/models").status_code == 200
        pool = client._transport._pool  # type: ignore[attr-defined]
        assert len(pool.connections) == 1


def test_half_of_a_second_request_does_not_hold_a_connection(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /v1/models HTTP/1.1\r\n")
        began_s = time.monotonic()
        connection.settimeout(20)
        while connection.recv(4096):
            pass
        assert time.monotonic() - began_s < 15
