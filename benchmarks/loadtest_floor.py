# ruff: noqa: E402
"""Measure the least CPU time of a load client in Python: `python benchmarks/loadtest_floor.py`.

A bare client sends the closed loop of `benchmarks/loadtest.py` to the bundled server (128 streams,
four requests each, 32 tokens, TTFT 100 ms, 20 ms per token). It waits in one epoll, sleeps between
looks at its sockets for as long as Tuneline does, and reads each token with one system call. It
keeps no byte and parses nothing. With `recvmsg` the kernel says when the bytes came, as for
Tuneline; `recv` has no such time.

The clients run in turns, and `vllm bench serve` with them if it is installed. The script prints
medians over the rounds with the least and the greatest, then one JSON document on the last line.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent
# A script of this folder must not stand for a package of the same name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != HERE]

from loadtest.calibration.calibrate import ITL_S, NUM_TOKENS, TTFT_S
from loadtest.calibration.start import known_server
from loadtest.client.connection import ANCILLARY_BYTES, READ_BYTES, SO_TIMESTAMPNS
from loadtest.client.process import NICE
from loadtest.client.processes import subprocess_environment
from loadtest.client.read_pacing import nap_ns
from tuneline.core.environment import hardware_facts

END = b"0\r\n\r\n"


def _loadtest_benchmark() -> Any:
    """Return the script next to this one as a module; its name is also a package's."""
    spec = importlib.util.spec_from_file_location("loadtest_benchmark", HERE / "loadtest.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["loadtest_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _loadtest_benchmark()
ROUNDS: int = benchmark.ROUNDS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        url, call = arguments.child
        _bare_client(url, call, arguments.streams)
        return
    streams = arguments.streams
    clients: dict[str, Callable[[], float]] = {
        "epoll and recv": lambda: _bare("recv", streams),
        "epoll and recvmsg": lambda: _bare("recvmsg", streams),
        "tuneline": lambda: benchmark.ours(streams, tls=False).cpu_s_per_1000_tokens,
    }
    if importlib.util.find_spec("vllm") is not None:
        clients["vllm bench serve"] = lambda: benchmark.vllm(streams).cpu_s_per_1000_tokens
    cost: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(arguments.rounds):
        for name, measure in clients.items():
            cost[name].append(measure())
            print(f"{name:18} {cost[name][-1]:.4f} s CPU per 1,000 tokens", flush=True)
    medians = {name: statistics.median(values) for name, values in cost.items()}
    for name, values in cost.items():
        print(
            f"{name:18} median {medians[name]:.4f} ({min(values):.4f} to {max(values):.4f}) s, "
            f"{medians[name] / medians['tuneline']:.2f} of tuneline's"
        )
    print(json.dumps({"hardware": hardware_facts(), "cpu_s_per_1000_tokens": cost}))


def _bare(call: str, streams: int) -> float:
    """Return the CPU seconds per 1,000 tokens of a bare client in a process of its own."""
    with known_server("--ttft-s", str(TTFT_S), "--itl-s", str(ITL_S)) as server:
        words = ["--streams", str(streams), "--child", server.endpoint.url, call]
        done = subprocess.run(
            [sys.executable, __file__, *words], env=subprocess_environment(), check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        tokens = sum(int(truth["num_tokens"]) for truth in server.truths())
    assert tokens == ROUNDS * streams * NUM_TOKENS
    return 1000 * float(done.stdout) / tokens


def _bare_client(url: str, call: str, streams: int) -> None:
    """Print the CPU seconds from the first request to the last byte."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    body = {
        "model": "known", "messages": [{"role": "user", "content": benchmark.PROMPT}],
        "max_tokens": NUM_TOKENS, "stream": True, "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }  # fmt: skip
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    request = head.encode() + data
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    epoll = select.epoll()
    socks, receive = {}, {}
    for _ in range(streams):
        sock = socket.create_connection((parts.hostname, parts.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if call == "recvmsg":
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setblocking(False)
        epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        socks[sock.fileno()] = sock
        receive[sock.fileno()] = getattr(sock, call)
    sizes = (READ_BYTES, ANCILLARY_BYTES) if call == "recvmsg" else (READ_BYTES,)
    left = dict.fromkeys(socks, ROUNDS)
    num_left = ROUNDS * streams
    request_ns = round((TTFT_S + (NUM_TOKENS - 1) * ITL_S) * 1e9)
    nap_s = nap_ns(round(ITL_S * 1e9), request_ns) / 1e9
    gc.disable()
    begun_s = time.process_time()
    for sock in socks.values():
        sock.send(request)
    while num_left:
        time.sleep(nap_s)
        for fd, _ in epoll.poll():
            found = receive[fd](*sizes)
            if (found[0] if call == "recvmsg" else found).endswith(END):
                num_left -= 1
                left[fd] -= 1
                if left[fd]:
                    socks[fd].send(request)
    print(time.process_time() - begun_s)


if __name__ == "__main__":
    main()
