"""A server whose answers never end costs its requests, not the run."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest import run_loadtest
from loadtest.client.answer_limit import KEPT_BYTES, READ_COST_BYTES, most_answer_bytes, num_kept
from loadtest.client.prepare import make_plan
from loadtest.config import DEFAULT_MAX_TOKENS
from tests.integration.loadtest.small import PROMPTS, config, report_of
from tuneline.core.endpoint import Endpoint

pytestmark = pytest.mark.usefixtures("shared_host")

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
CHUNKS = 1000 * (b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
BODY_WITHOUT_END = b"HTTP/1.1 200 OK\r\n\r\n[" + 65536 * b" "
STREAM, SPACES = "stream", "spaces"


@contextlib.contextmanager
def endless_server(kind: str) -> Iterator[str]:
    """Answer each request without an end, as fast as the client reads."""
    head, more = (HEAD, CHUNKS) if kind == STREAM else (BODY_WITHOUT_END, 65536 * b" ")

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while b"\r\n\r\n" not in connection.recv(65536):
                pass
            connection.sendall(head)
            while True:
                connection.sendall(more)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("kind", "route"), [(STREAM, "chat"), (SPACES, "embeddings")])
def test_an_endless_answer_fails_its_request_and_the_run_has_a_report(
    tmp_path: Path, kind: str, route: str
) -> None:
    settings = config(
        scenarios=[{"name": "x", "rate_rps": 20.0, "num_requests": 40}], num_warmup_requests=0,
        workload={"route": route}, check_models=False, slo={"max_error_rate": None},
        max_tokens=8 if route == "chat" else DEFAULT_MAX_TOKENS,
    )  # fmt: skip
    with endless_server(kind) as url:
        artifact = run_loadtest(settings, Endpoint(url, "m"), tmp_path / "a", prompts=PROMPTS)
    (scenario,) = report_of(artifact)["scenarios"]
    assert scenario["errors"].keys() == {"answer_too_long"}
    assert scenario["errors"]["answer_too_long"]["count"] == 40
    assert scenario["errors"]["answer_too_long"]["examples"][0].startswith("no end after ")


def test_only_the_begin_of_an_endless_answer_is_kept() -> None:
    read = (0, None, 16384 * b" ")
    assert 1 <= num_kept([read] * 500) <= KEPT_BYTES / 16384
    small = (0, None, b" ")
    assert num_kept([small] * 100) == 100
    assert num_kept([small] * 100_000) * READ_COST_BYTES <= KEPT_BYTES


def limit_of(**options: object) -> int:
    settings = config(**options)
    plan, workload = make_plan(
        settings, settings.scenarios[0], Endpoint("http://h/v1", "m"), PROMPTS, seed=0
    )
    assert plan.most_answer_bytes == most_answer_bytes(settings, workload)
    return plan.most_answer_bytes


def test_the_limit_has_room_for_all_that_a_request_may_ask() -> None:
    # vLLM's event of a token with 20 log-probabilities takes about 4 kB.
    few, many = limit_of(max_tokens=100), limit_of(max_tokens=10_000)
    assert 1e6 < few < 2e6
    assert many > 10_000 * 1000
    extra = {"logprobs": True, "top_logprobs": 20}
    assert limit_of(max_tokens=10_000, extra_body=extra) > 10_000 * 4000
    tokens = limit_of(extra_body={"max_completion_tokens": 10_000})
    assert tokens == pytest.approx(many, rel=0.01)
    assert limit_of(extra_body={"prompt_logprobs": -1}) > 100 * limit_of()
    # A vector of 8,192 numbers; and one for each token of the prompt.
    assert limit_of(workload={"route": "embeddings"}, max_tokens=DEFAULT_MAX_TOKENS) > 8192 * 25
    pooling = limit_of(workload={"route": "pooling"}, max_tokens=DEFAULT_MAX_TOKENS)
    assert pooling > len("question") * 4096 * 8
