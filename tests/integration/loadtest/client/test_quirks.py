"""The client against a server that sends what servers in use send, byte for byte."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.client.prepare import make_plan
from loadtest.client.processes import run_workers
from loadtest.client.records import STATES
from loadtest.client.sse import parse_response
from loadtest.config import LoadTestConfig
from loadtest.measure import judged
from loadtest.report.build import Result, endpoint_report
from loadtest.run import check_served, run_loadtest
from tests.integration.loadtest.client import quirks
from tests.integration.loadtest.client.quirks import QUIRKS, WHOLE, Quirk
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError

pytestmark = pytest.mark.usefixtures("shared_host")


class QuirkServer:
    """Answers each request with the quirk that its last message names.

    Args:
        models: The answer to GET /models: status line, further headers and body.
        closing: How a connection ends after an answer; empty to keep it.
    """

    def __init__(self, models: tuple[str, str, bytes], closing: str) -> None:
        self.models, self.closing = models, closing
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.num_requests = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as stream:
            while line := stream.readline():
                size = 0
                while (header := stream.readline()) not in (b"\r\n", b""):
                    name, _, value = header.partition(b":")
                    size = int(value) if name.lower() == b"content-length" else size
                body = stream.read(size)
                if line.startswith(b"GET"):
                    status, more, models = self.models
                    head = f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(models)}\r\n\r\n"
                    sock.sendall(head.encode() + models)
                    continue
                self.num_requests += 1
                name = json.loads(body)["messages"][-1]["content"]
                quirk = QUIRKS.get(name, Quirk(WHOLE))
                self.send(sock, quirk)
                if quirk.is_cut or self.closing:
                    return

    def send(self, sock: socket.socket, quirk: Quirk) -> None:
        more = f"Connection: {self.closing}\r\n" if "," in self.closing else ""
        head = f"HTTP/1.1 {quirk.status} X\r\nContent-Type: {quirk.kind}\r\n{more}"
        sock.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        if quirk.body:
            sock.sendall(b"%x\r\n%b\r\n" % (len(quirk.body), quirk.body))
        if not quirk.is_cut:
            sock.sendall(b"0\r\n\r\n")


LISTED = ("200 OK", "", b'{"object": "list", "data": [{"id": "m"}]}')


@contextmanager
def quirk_server(
    models: tuple[str, str, bytes] = LISTED, closing: str = ""
) -> Iterator[tuple[QuirkServer, Endpoint]]:
    server = QuirkServer(models, closing)
    try:
        yield server, Endpoint(f"http://127.0.0.1:{server.port}/v1", "m")
    finally:
        server.listener.close()


def config(num_requests: int, concurrency: int = 4, **options: Any) -> LoadTestConfig:
    scenario = {"name": "x", "concurrency": concurrency, "num_requests": num_requests}
    return LoadTestConfig.model_validate(
        {
            "scenarios": [scenario], "num_warmup_requests": 0, "calibrate": False,
            "max_client_lag_s": 1.0, "timeout_s": 10.0, **options,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured() -> Iterator[tuple[list[str], Result]]:
    prompts = [[{"role": "user", "content": name}] for name in QUIRKS]
    with quirk_server() as (_, endpoint):
        chosen = config(2 * len(QUIRKS))
        plan, workload = make_plan(chosen, chosen.scenarios[0], endpoint, prompts, seed=0)
        names = [json.loads(body)["messages"][0]["content"] for body in plan.bodies]
        result = judged(chosen, chosen.scenarios[0], plan, workload, run_workers(plan, None))
        yield names, result


@pytest.mark.parametrize("name", QUIRKS)
def test_each_quirk_is_judged_rightly(name: str, measured: tuple[list[str], Result]) -> None:
    names, result = measured
    quirk, records = QUIRKS[name], result.records
    rows = [row for row, index in enumerate(records.index) if names[index % len(names)] == name]
    assert len(rows) == 2
    for row in rows:
        assert STATES[records.state[row]] == ("succeeded" if quirk.error is None else "failed")
        assert records.error[row] == (quirk.error or "")
        assert records.num_events[row] == quirk.num_events
        assert records.without_done[row] == quirk.without_done
        if quirk.error is None:
            assert (records.tokens[row], records.prompt_tokens[row]) == (3, 5)
            assert not np.isnan(records.first_token_s[row])
        if quirk.num_cached is not None:
            assert records.cached_tokens[row] == quirk.num_cached
    # The report keeps three examples of a class; the parser says what each answer is told.
    head = f"HTTP/1.1 {quirk.status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = b"%x\r\n%b\r\n" % (len(quirk.body), quirk.body) if quirk.body else b""
    end = b"" if quirk.is_cut else b"0\r\n\r\n"
    answer = parse_response([0], [head + body + end], closed=True)
    assert (answer.error or "", quirk.says in answer.message) == (quirk.error or "", True)
    assert quirk.error is None or quirk.error in result.examples


def test_an_answer_without_the_form_that_was_asked_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text, finish in (
        ("right", "{}", "stop"),
        ("wrong", "{", "stop"),
        ("cut", "{", "length"),
    ):
        body = quirks.chunk(text) + quirks.chunk(finish=finish) + quirks.USAGE + quirks.DONE
        monkeypatch.setitem(QUIRKS, name, Quirk(body))
    prompts = [[{"role": "user", "content": name}] for name in ("right", "wrong", "cut")]
    asked = {"response_format": {"type": "json_object"}}
    with quirk_server() as (_, endpoint):
        chosen = config(12, extra_body=asked)
        plan, workload = make_plan(chosen, chosen.scenarios[0], endpoint, prompts, seed=0)
        result = judged(chosen, chosen.scenarios[0], plan, workload, run_workers(plan, None))
    assert result.stats.errors == {"malformed_answer": 4}
    assert result.judgement.verdict == "FAIL"
    assert result.endings is not None and result.endings.num_validated == 8
    assert "not JSON" in result.examples["malformed_answer"][0]


def test_answers_without_done_are_noted(measured: tuple[list[str], Result]) -> None:
    _, result = measured
    assert any("2 answers end without [DONE]" in one for one in result.judgement.warnings)


def test_the_page_on_servers_has_every_quirk() -> None:
    page = (Path(__file__).parents[4] / "docs" / "servers.md").read_text("utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert len(listed) == len(set(listed)) > 10
    assert set(listed) == set(QUIRKS)


SERVERS = {
    "vllm", "sglang", "tgi", "llamacpp", "ollama", "lmstudio", "trtllm", "litellm", "triton",
    "openrouter", "azure", "deepseek", "moonshot", "gateway",
}  # fmt: skip


def test_each_server_in_use_has_a_quirk() -> None:
    assert {name.partition("-")[0] for name in QUIRKS} == SERVERS


@pytest.mark.parametrize("closing", ["keep-alive, close", "silently"])
def test_a_connection_closed_after_each_answer_is_no_reset(closing: str) -> None:
    prompts = [[{"role": "user", "content": "plain"}]]
    with quirk_server(closing=closing) as (server, endpoint):
        chosen = config(30, concurrency=1)
        plan, workload = make_plan(chosen, chosen.scenarios[0], endpoint, prompts, seed=0)
        result = judged(chosen, chosen.scenarios[0], plan, workload, run_workers(plan, None))
        assert (result.stats.num_succeeded, result.stats.errors) == (30, {})
        assert server.num_requests == 30


BARE = b'[{"id": "m"}]'
LONG = json.dumps(
    {"data": [{"id": "m"}, *({"id": f"m{n}", "description": "x" * 3000} for n in range(400))]}
).encode()
NO_LISTS = {
    "404": ("404 Not Found", "", b'{"detail": "Not Found"}'),
    "400": ("400 Bad Request", "", b'{"error": {"message": "model not found in request body"}}'),
    "500": ("500 Internal Server Error", "", b'{"error": "no model in body"}'),
    "redirect": ("307 Temporary Redirect", "Location: http://other/v1/models\r\n", b""),
    "null": ("200 OK", "", b'{"object": "list", "data": null}'),
    "page": ("200 OK", "", b"<html>\x1b[31m</html>"),
}


@pytest.mark.parametrize("models", [("200 OK", "", BARE), ("200 OK", "", LONG)])
def test_a_bare_list_and_a_long_list_of_models_are_read(models: tuple[str, str, bytes]) -> None:
    with quirk_server(models) as (server, endpoint):
        served = check_served(config(1), endpoint, [])
        assert served.is_listed and "m" in served.names
        assert server.num_requests == 0
        with pytest.raises(ServerError, match="does not serve the model 'absent'") as caught:
            check_served(config(1), Endpoint(endpoint.url, "absent"), [])
        assert len(caught.value.message) < 400


@pytest.mark.parametrize("engine", ["0123456789ab", None])
def test_a_report_keeps_the_settings_that_a_server_states(engine: str | None) -> None:
    headers = f"x-tuneline-engine: {engine}\r\n" if engine else "X-Tuneline-Engine: \r\n"
    with quirk_server(("200 OK", headers, BARE)) as (_, endpoint):
        served = check_served(config(1), endpoint, [])
    assert served.engine == engine
    assert endpoint_report(endpoint, served).engine == engine


@pytest.mark.parametrize("kind", NO_LISTS)
def test_a_server_without_a_list_of_models_is_tested_if_the_model_answers(
    kind: str, tmp_path: Path
) -> None:
    with quirk_server(NO_LISTS[kind]) as (server, endpoint):
        served = check_served(config(1), endpoint, [])
        assert (served.names, served.is_listed) == (["m"], False)
        assert server.num_requests == 1
        assert not check_served(config(1, check_models=False), endpoint, []).is_listed
        assert server.num_requests == 1
        if kind == "404":
            report = run_loadtest(
                config(4), endpoint, tmp_path / "r", prompts=[[{"role": "user", "content": "x"}]]
            )
            document = json.loads((report.path / "report.json").read_text("utf-8"))
            assert document["endpoint"]["is_listed"] is False
            assert document["scenarios"][0]["requests"]["succeeded"] == 4


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("404", "has no /v1/models (status 404)"),
        ("400", "model not found in request body"),
        ("500", "no model in body"),
        ("redirect", "the location http://other/v1; expected 200"),
        ("null", "holds no list of models"),
        ("page", "holds no list of models"),
    ],
)
def test_a_refusal_names_the_servers_words_and_the_way_out(
    kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(QUIRKS, "Hello", QUIRKS["triton-detail"])
    with quirk_server(NO_LISTS[kind]) as (_, endpoint):
        with pytest.raises(ServerError) as caught:
            check_served(config(1), endpoint, [])
        assert words in caught.value.message
        assert "--set loadtest.check_models=false" in str(caught.value.hint)
        assert "\x1b" not in str(caught.value)
        assert caught.value.exit_code == 5
