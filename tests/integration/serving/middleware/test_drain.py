"""The middleware hears SIGTERM next to a handler that the event loop already has, as in vLLM's
server: a real uvicorn, on each of the two loops."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

# As vLLM's launcher does: uvicorn without signal handlers of its own, SIGTERM on the loop, and only
# then the application's start.
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
    await send({"type": "http.response.body", "body": b"inner"})

async def main():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(uvicorn.Config(TunelineMiddleware(app), log_level="error"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        heard = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard.set)
        while not server.started:
            await asyncio.sleep(0.01)
        print(listener.getsockname()[1], flush=True)
        await heard.wait()
        print("the loop heard it", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True
        await task

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SERVER, request.param]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_sigterm_is_heard_and_handed_on(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    port = int(server.stdout.readline())
    assert status(port, "/ready") == status(port, "/v1/completions") == 200
    server.send_signal(signal.SIGTERM)
    assert server.stdout.readline() == "the loop heard it\n"
    assert status(port, "/ready") == status(port, "/v1/completions") == 503
    assert status(port, "/health") == 200
    server.send_signal(signal.SIGTERM)  # a second one changes nothing
    assert status(port, "/ready") == 503
    server.communicate(timeout=30)
    assert server.returncode == 0


def status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
