"""SIGTERM reaches vLLM's own handler when nothing is in flight: a real uvicorn, on each of the two
loops, with the handlers of vLLM's launcher."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serving.middleware.drain import EXIT_AFTER_S

# As vLLM's launcher does: uvicorn without signal handlers of its own, both signals on the loop, and
# only then the application's start. It may also take long to end.
SERVER = """
import asyncio, contextlib, signal, socket, sys
import uvicorn
from serving.middleware.app import TunelineMiddleware

class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/v1/chat/completions":
        await send({"type": "http.response.body", "body": b"x" * 8_000_000})
        return
    await send({"type": "http.response.body", "body": b"in", "more_body": True})
    if scope["path"] == "/v1/completions" and scope["server"]:  # not the middleware's own
        await asyncio.to_thread(sys.stdin.readline)
    await send({"type": "http.response.body", "body": b"ner"})

async def main():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(uvicorn.Config(TunelineMiddleware(app), log_level="error"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        heard = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, heard.set)
        while not server.started:
            await asyncio.sleep(0.01)
        print(listener.getsockname()[1], flush=True)
        await heard.wait()
        print("the loop heard it", flush=True)
        if sys.argv[2] == "ends":
            server.should_exit = True
        await task

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def server(loop: str, end: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-c", SERVER, loop, end]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def test_vllm_hears_of_the_end_when_nothing_is_in_flight(loop: str) -> None:
    with server(loop, "ends") as (process, port):
        assert process.stdin is not None
        assert process.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/completions", body="{}")
        response = connection.getresponse()
        assert response.read(2) == b"in"
        process.send_signal(signal.SIGTERM)
        wait_until_draining(port)
        assert status(port, "/v1/completions", "POST") == 503
        assert status(port, "/health") == 200
        process.send_signal(signal.SIGTERM)  # a second one changes nothing
        assert status(port, "/ready") == 503
        assert process.poll() is None
        process.stdin.write("\n")
        process.stdin.flush()
        assert response.read() == b"ner"
        connection.close()
        assert process.stdout.readline() == "the loop heard it\n"
        assert process.wait(timeout=30) == 0


def test_a_drained_server_ends_soon_whatever_vllm_still_does(loop: str) -> None:
    with server(loop, "lingers") as (process, port):
        assert status(port, "/ready") == 200
        began_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - began_s < EXIT_AFTER_S + 3


def test_an_answer_that_its_client_still_reads_is_sent_whole(loop: str) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    with server(loop, "lingers") as (process, port), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", port))
        client.sendall(head + b"Content-Length: 2\r\n\r\n{}")
        num_bytes = len(client.recv(1000))
        process.send_signal(signal.SIGTERM)
        wait_until_draining(port)
        time.sleep(EXIT_AFTER_S + 1)  # the process would have ended by then
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        while part := client.recv(1 << 20):
            num_bytes += len(part)
        assert num_bytes > 8_000_000
        assert process.wait(timeout=30) == 0


def wait_until_draining(port: int) -> None:
    deadline_s = time.monotonic() + 10
    while status(port, "/ready") != 503:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def status(port: int, path: str, method: str = "GET") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body="{}" if method == "POST" else None)
        return connection.getresponse().status
    finally:
        connection.close()
