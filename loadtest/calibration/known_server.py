"""A server whose delays and tokens are known, for calibrating the client and for tests.

`python -m loadtest.calibration.known_server --ttft-s 0.1 --itl-s 0.02` prints one JSON line
with its port, then serves an OpenAI-compatible `/v1/chat/completions` (and `/v1/completions`) with
streams. It writes straight to its sockets and notes the time of each write, and the kernel's
receive time of each request. `GET /truth` returns that record, for comparison with a client's own
figures. All times are on the machine's monotonic clock.

A request chooses a fault with the words `fault:NAME` in its last message; see FAULTS.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import socket
import ssl
import struct
import sys
import time
from dataclasses import asdict
from typing import Any

import uvloop

from loadtest.calibration.known_documents import Classes, Embeddings, Poolings, Ranks, Scores
from loadtest.calibration.known_routes import MessagesStream, ResponsesStream
from loadtest.calibration.known_stream import FAULTS, Delays, Stream, Truth
from loadtest.client.clocks import realtime_offset_ns
from loadtest.client.connection import ANCILLARY_BYTES, SO_TIMESTAMPNS, TIMESPEC
from loadtest.client.tls import TlsStream
from tuneline.core.parent import end_with_parent

STREAMS: dict[str, type[Stream]] = {
    "/v1/chat/completions": Stream,
    "/v1/completions": Stream,
    "/v1/responses": ResponsesStream,
    "/v1/messages": MessagesStream,
    "/v1/embeddings": Embeddings,
    "/pooling": Poolings,
    "/classify": Classes,
    "/score": Scores,
    "/v1/rerank": Ranks,
}


class KnownServer:
    """State that all connections share."""

    def __init__(self, delays: Delays, model: str, key: str | None) -> None:
        self.delays, self.model, self.key = delays, model, key
        self.truths: list[Truth] = []
        self.loop = asyncio.get_running_loop()
        self.epoch_s = self.loop.time()
        self.num_running = 0
        self.free_at_s = 0.0
        self.folded: dict[str, float] = {}
        """Metrics of the requests whose record was let go."""

    def names(self) -> list[str]:
        return [self.model, f"{self.model}@0123456789ab"]

    def keep(self, truth: Truth) -> None:
        """Keep the record of a request; with `num_kept`, let older ones go."""
        self.truths.append(truth)
        if self.delays.num_kept and len(self.truths) > 2 * self.delays.num_kept:
            cut = len(self.truths) - self.delays.num_kept
            old, recent = self.truths[:cut], self.truths[cut:]
            self.truths = [one for one in old if one.done_ns is None] + recent
            self.folded = added(self.folded, metric_values([one for one in old if one.done_ns]))

    def metrics(self) -> dict[str, float]:
        """Return the few of vLLM's metrics that a load test reads."""
        found = added(self.folded, metric_values(self.truths))
        delays, age_s = self.delays, self.loop.time() - self.epoch_s
        memory_mib = delays.memory_mib + delays.leak_mib_per_s * age_s
        return {**found, "process_resident_memory_bytes": round(memory_mib * 2**20)}

    def when(self, time_s: float) -> float:
        """Return when a write that is due at `time_s` happens: then, or on the next common step."""
        step_s = self.delays.step_s
        if step_s <= 0:
            return time_s
        steps = -(-(time_s - self.epoch_s) // step_s)
        return self.epoch_s + steps * step_s


class ServerConnection:
    """Requests and answers of one connection. Writes go to the kernel at once, so that the time
    noted is the time of the write."""

    def __init__(self, server: KnownServer, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.buffer = b""
        self.received_ns = 0
        self.busy = False
        self.is_open = True
        self.unsent = b""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        server.loop.add_reader(sock, self.readable)

    def readable(self) -> None:
        try:
            data, ancillary, _, _ = self.sock.recvmsg(65536, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if data:
            time_ns = time.monotonic_ns()
            if ancillary:
                time_ns = min(time_ns, monotonic_receive_ns(ancillary[0][2]))
            self.received(data, time_ns)
        else:
            self.close()

    def write(self, data: bytes) -> None:
        if not self.is_open:
            return
        if self.unsent:
            self.unsent += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self.unsent = data[sent:]
            self.server.loop.add_writer(self.sock, self.writable)

    def writable(self) -> None:
        data, self.unsent = self.unsent, b""
        self.server.loop.remove_writer(self.sock)
        ServerConnection.write(self, data)  # encrypted already, if at all

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.server.loop.remove_reader(self.sock)
            self.server.loop.remove_writer(self.sock)
            self.sock.close()

    def reset(self) -> None:
        if self.is_open:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()

    def received(self, data: bytes, time_ns: int) -> None:
        self.buffer += data
        self.received_ns = time_ns
        self.take_request()

    def response_done(self) -> None:
        self.busy = False
        if self.buffer:
            self.server.loop.call_soon(self.take_request)

    def take_request(self) -> None:
        if self.busy:
            return
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        lines = self.buffer[:head_end].decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        size = int(headers.get("content-length", "0"))
        if len(self.buffer) < head_end + 4 + size:
            return
        received_ns = self.received_ns
        body = self.buffer[head_end + 4 : head_end + 4 + size]
        self.buffer = self.buffer[head_end + 4 + size :]
        self.busy = True
        method, path, _ = lines[0].split(" ", 2)
        self.answer(method, path.partition("?")[0], headers, body, received_ns)

    def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes, received_ns: int
    ) -> None:
        server = self.server
        if path == "/truth":
            self.document(200, [asdict(truth) for truth in server.truths])
            if method == "DELETE":
                server.truths, server.folded = [], {}
        elif path == "/metrics":
            self.respond(200, metrics_text(server.metrics()).encode(), "text/plain")
        elif path in ("/health", "/ping"):
            self.document(200, {})
        elif server.key is not None and headers.get("authorization") != f"Bearer {server.key}":
            self.document(401, {"error": {"message": "Unauthorized", "code": 401}})
        elif path == "/v1/models":
            models = [{"id": name, "object": "model"} for name in server.names()]
            self.document(200, {"object": "list", "data": models})
        elif path in STREAMS:
            self.completion(STREAMS[path], headers, json.loads(body), received_ns)
        else:
            self.document(404, {"detail": "Not Found"})

    def completion(
        self,
        stream: type[Stream],
        headers: dict[str, str],
        body: dict[str, Any],
        received_ns: int,
    ) -> None:
        server = self.server
        fault = _fault(body)
        request_id = headers.get("x-request-id", str(len(server.truths)))
        truth = Truth(request_id, fault, received_ns)
        server.keep(truth)
        if body.get("model") not in server.names():
            message = f"The model `{body.get('model')}` does not exist."
            self.document(404, {"error": {"message": message, "code": 404}})
        elif fault in ("401", "404", "500"):
            self.document(int(fault), {"error": {"message": f"fault {fault}", "code": int(fault)}})
        elif fault == "429":
            self.document(429, {"error": {"message": "slow down"}}, "Retry-After: 2\r\n")
        elif fault == "503":
            self.respond(503, b"<html>upstream is away</html>", "text/html")
        elif fault == "not-stream":
            self.document(200, {"object": "chat.completion", "choices": []})
        elif fault == "not-http":
            self.write(b"SSH-2.0-OpenSSH_9.7\r\n")
            self.close()
        elif fault == "reset-early":
            self.reset()
        elif fault != "silent":
            stream(server, self, truth, body).begin()

    def document(self, status: int, document: Any, more_headers: str = "") -> None:
        self.respond(status, json.dumps(document).encode(), "application/json", more_headers)

    def respond(self, status: int, body: bytes, kind: str, more_headers: str = "") -> None:
        head = (
            f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{more_headers}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.write(head.encode() + body)
        self.response_done()


class TlsServerConnection(ServerConnection):
    """The same over TLS; times are still those of the kernel's reads and of the writes."""

    def __init__(self, server: KnownServer, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(server, sock)
        self.stream = TlsStream(context)
        self.is_ready = False

    def received(self, data: bytes, time_ns: int) -> None:
        try:
            if not self.is_ready:
                self.is_ready, answer = self.stream.shake_hands(data)
                super().write(answer)
                data = b""
            plain, is_over = self.stream.decrypt(data) if self.is_ready else (b"", False)
        except ssl.SSLError:
            self.close()
            return
        if plain:
            super().received(plain, time_ns)
        if is_over:
            self.close()

    def write(self, data: bytes) -> None:
        super().write(self.stream.encrypt(data))


def _fault(body: dict[str, Any]) -> str | None:
    keys = ("messages", "input", "documents", "text_2", "prompt")
    said = next((body[key] for key in keys if body.get(key)), "")
    last = said[-1] if isinstance(said, list) else said
    text = str(last.get("content", "") if isinstance(last, dict) else last)
    _, found, rest = text.partition("fault:")
    name = rest.split()[0] if found and rest.split() else ""
    return name if name in FAULTS else None


def metric_values(truths: list[Truth]) -> dict[str, float]:
    """Return vLLM's counters of these requests."""
    done = [truth for truth in truths if truth.done_ns is not None and truth.token_write_ns]
    ttft = [(truth.token_write_ns[0] - truth.received_ns) / 1e9 for truth in done]
    e2e = [(truth.done_ns - truth.received_ns) / 1e9 for truth in done if truth.done_ns]
    return {
        "vllm:generation_tokens_total": sum(truth.num_tokens for truth in done),
        "vllm:prompt_tokens_total": 7 * len(done),
        "vllm:request_success_total": len(done),
        "vllm:prefix_cache_queries_total": 7 * len(done),
        "vllm:prefix_cache_hits_total": 0,
        "vllm:time_to_first_token_seconds_sum": sum(ttft),
        "vllm:time_to_first_token_seconds_count": len(ttft),
        "vllm:e2e_request_latency_seconds_sum": sum(e2e),
        "vllm:e2e_request_latency_seconds_count": len(e2e),
    }


def added(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Return the sums of two sets of counters."""
    return {name: first.get(name, 0) + value for name, value in second.items()}


def metrics_text(values: dict[str, float]) -> str:
    """Return metrics in the Prometheus text format."""
    return "".join(f'{name}{{model_name="known"}} {value}\n' for name, value in values.items())


def monotonic_receive_ns(timespec: bytes) -> int:
    seconds, nanoseconds = TIMESPEC.unpack(timespec)
    return int(seconds * 1_000_000_000 + nanoseconds - realtime_offset_ns())


async def _serve(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    delays = Delays(
        arguments.ttft_s, arguments.itl_s, arguments.num_tokens, arguments.step_s,
        arguments.one_at_a_time, arguments.drift, arguments.memory_mib, arguments.leak_mib_per_s,
        arguments.num_kept,
    )  # fmt: skip
    server = KnownServer(delays, arguments.model, arguments.api_key)
    listener = socket.create_server((arguments.host, arguments.port), backlog=4096)
    listener.setblocking(False)
    context = None
    if arguments.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.certificate, arguments.private_key)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if context is None:
                ServerConnection(server, sock)
            else:
                TlsServerConnection(server, sock, context)

    loop.add_reader(listener, accept)
    print(json.dumps({"port": listener.getsockname()[1], "model": server.model}), flush=True)
    gc.freeze()
    gc.disable()
    await asyncio.Event().wait()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-s", type=float, default=0.1)
    parser.add_argument("--itl-s", type=float, default=0.02)
    parser.add_argument("--num-tokens", type=int, default=32)
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--one-at-a-time", action="store_true")
    parser.add_argument("--drift", type=float, default=0.0)
    parser.add_argument("--memory-mib", type=float, default=1000.0)
    parser.add_argument("--leak-mib-per-s", type=float, default=0.0)
    parser.add_argument("--num-kept", type=int, default=0)
    parser.add_argument("--model", default="known")
    parser.add_argument("--api-key")
    parser.add_argument("--certificate")
    parser.add_argument("--private-key")
    parser.add_argument(
        "--ends-with-parent", action="store_true", help="Leave no server behind a killed parent."
    )
    try:
        arguments = parser.parse_args(argv)
        if arguments.ends_with_parent:
            end_with_parent()
        uvloop.run(_serve(arguments))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
