"""A client that reads nothing of its answer: a real uvicorn, on each of its loops and protocols."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

EVENT_BYTES = 8000
MANY_EVENTS = 2000
"""More than the buffers of the kernel take."""

# Plays an engine that has computed a whole stream before its client reads the first event. The
# model `hang` stops the engine.
SERVER = """
import asyncio, json, socket, sys
import uvicorn
from prometheus_client import Counter, generate_latest
from serving.middleware.app import TunelineMiddleware

tokens = Counter("vllm:generation_tokens", "Tokens.")
hangs = False

async def app(scope, receive, send):
    global hangs
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    fields = json.loads((await receive())["body"]) if scope["method"] == "POST" else {}
    hangs = hangs or fields.get("model") == "hang"
    if hangs and fields:
        await asyncio.Event().wait()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/metrics":
        await send({"type": "http.response.body", "body": generate_latest()})
        return
    tokens.inc()
    for _ in range(fields.get("events", 0)):
        event = {"type": "http.response.body", "body": b"x" * int(sys.argv[3]), "more_body": True}
        await send(event)
    await send({"type": "http.response.body", "body": b""})

async def main():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(TunelineMiddleware(app), http=sys.argv[2], log_level="error")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        print(listener.getsockname()[1], flush=True)
        await task

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.fixture(params=["asyncio h11", "uvloop httptools"])
def implementation(request: pytest.FixtureRequest) -> list[str]:
    return str(request.param).split()


@contextmanager
def server(
    implementation: list[str], monkeypatch: pytest.MonkeyPatch, **settings: float
) -> Iterator[int]:
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps(settings))
    command = [sys.executable, "-c", SERVER, *implementation, str(EVENT_BYTES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def ask_for_a_stream(port: int) -> socket.socket:
    """Ask for a long stream, and read nothing yet."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", port))
    body = json.dumps({"model": "tickets", "events": MANY_EVENTS}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return connection


def metric(port: int, name: str) -> float:
    page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    samples = (s for family in text_string_to_metric_families(page) for s in family.samples)
    return sum(sample.value for sample in samples if sample.name == name)


def test_a_client_that_reads_nothing_is_not_silence_of_the_engine(
    implementation: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer_of_a_hung_engine(number: int) -> int:
        body = {"model": "hang", "number": number}
        return httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code

    with server(implementation, monkeypatch, stall_after_s=1.0, send_timeout_s=600) as port:
        url = f"http://127.0.0.1:{port}"
        with ask_for_a_stream(port) as unread:
            while metric(port, "tuneline_requests_in_flight") == 0:
                time.sleep(0.01)
            deadline_s = time.monotonic() + 5
            while time.monotonic() < deadline_s:
                assert httpx.get(f"{url}/ready").status_code == 200
                time.sleep(0.05)
            assert metric(port, "tuneline_requests_in_flight") == 1
            began_s = time.monotonic()
            with ThreadPoolExecutor(4) as pool:
                assert list(pool.map(answer_of_a_hung_engine, range(4))) == [503] * 4
            # The limit is 1 s, and the open requests end after twice that time.
            assert time.monotonic() - began_s < 20
            assert httpx.get(f"{url}/health").status_code == 503
            assert metric(port, "tuneline_unread_connections_closed_total") == 0
            # The answer was computed before the engine hung, so its client gets the whole answer.
            assert num_bytes(unread) > MANY_EVENTS * EVENT_BYTES


def test_an_unread_connection_is_closed_and_a_slow_one_is_not(
    implementation: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout_s = 3.0
    is_over = threading.Event()

    def read_slowly(connection: socket.socket) -> int:
        taken = 0
        while not is_over.wait(0.05):
            taken += len(connection.recv(2048))
        return taken

    with (
        server(implementation, monkeypatch, send_timeout_s=timeout_s) as port,
        ThreadPoolExecutor(1) as pool,
    ):
        with ask_for_a_stream(port) as unread, ask_for_a_stream(port) as slow:
            began_s = time.monotonic()
            reading = pool.submit(read_slowly, slow)
            try:
                while metric(port, "tuneline_unread_connections_closed_total") == 0:
                    assert time.monotonic() - began_s < 60
                    time.sleep(0.1)
                assert time.monotonic() - began_s >= timeout_s
                time.sleep(2 * timeout_s)
            finally:
                is_over.set()
            taken = reading.result()
            assert taken < 1_000_000, "the kernel of the server holds more than the client has read"
            assert metric(port, "tuneline_unread_connections_closed_total") == 1
            assert metric(port, "tuneline_requests_in_flight") == 1
            assert taken + num_bytes(slow) > MANY_EVENTS * EVENT_BYTES
            # The kernel still delivers what it had taken.
            assert num_bytes(unread) < MANY_EVENTS * EVENT_BYTES
        assert metric(port, "tuneline_requests_in_flight") == 0


def num_bytes(connection: socket.socket) -> int:
    """Return how many bytes come until the end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    count = 0
    while part := connection.recv(1 << 20):
        count += len(part)
    return count
