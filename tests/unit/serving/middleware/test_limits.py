"""Limits of every request: what is refused before vLLM sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest
from prometheus_client import REGISTRY

from serving.middleware import app as app_module
from serving.middleware.app import TunelineMiddleware
from serving.middleware.asgi import Receive, Scope, Send
from serving.middleware.body import MAX_READING
from serving.middleware.settings import Settings, read_settings
from tests.unit.serving.middleware.harness import CHAT, Answer, Inner, ask, send_request


def limited(monkeypatch: pytest.MonkeyPatch, inner: Inner, **settings: Any) -> TunelineMiddleware:
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps(settings))
    return TunelineMiddleware(inner)


@pytest.mark.parametrize("says_length", [True, False])
def test_a_body_that_is_too_large(monkeypatch: pytest.MonkeyPatch, says_length: bool) -> None:
    inner = Inner()
    middleware = limited(monkeypatch, inner, max_body_bytes=2000)
    headers = {"content-length": "3000"} if says_length else {}
    answer = ask(middleware, CHAT, headers=headers, parts=[b"x" * 1000] * 3)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert inner.paths == []
    assert ask(middleware, CHAT, parts=[b"x" * 1000] * 2).status == 200


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/tokenize", "/detokenize"])
def test_routes_that_run_no_model_have_the_same_limits(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    inner = Inner()
    middleware = limited(
        monkeypatch, inner, routes=["messages", "tokenize"], max_body_bytes=2000,
        body_timeout_s=0.05,
    )  # fmt: skip
    answers = [
        ask(middleware, path, parts=[b"x" * 1000] * 3),
        ask(middleware, path, parts=[b"{", 5.0, b"}"]),
        ask(middleware, path, {"chat_template": "{{ messages }}"}),
        ask(middleware, path, b"[" * 1000),
    ]
    assert [answer.status for answer in answers] == [413, 408, 400, 400]
    assert inner.paths == []
    assert ask(middleware, path, {"model": "m", "prompt": "x"}).status == 200
    assert [json.loads(body) for body in inner.bodies] == [{"model": "m", "prompt": "x"}]


def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Inner()
    middleware = limited(monkeypatch, inner, body_timeout_s=0.05)
    answer = ask(middleware, CHAT, parts=[b"{", 5.0, b"}"])
    assert (answer.status, answer.error["type"]) == (408, "RequestTimeoutError")
    assert inner.paths == []


def test_a_client_that_leaves_is_counted() -> None:
    labels = {"route": CHAT}
    before = REGISTRY.get_sample_value("tuneline_clients_left_total", labels) or 0.0
    inner = Inner()
    answer = ask(TunelineMiddleware(inner), CHAT, parts=[b"{", None])
    assert answer.status == 0
    assert inner.paths == []
    assert REGISTRY.get_sample_value("tuneline_clients_left_total", labels) == before + 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 17}, "n"),
        ({"best_of": 100000}, "best_of"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens"),
        ({"max_output_tokens": 101}, "max_output_tokens"),
        # vLLM takes these for whole numbers, too.
        ({"n": "17"}, "n"),
        ({"n": 17.0}, "n"),
        ({"n": " 17 "}, "n"),
        ({"best_of": "1_7"}, "best_of"),
        ({"max_tokens": "101"}, "max_tokens"),
        ({"max_tokens": 1e5}, "max_tokens"),
        ({"max_tokens": "101.0"}, "max_tokens"),
        ({"max_completion_tokens": "+101"}, "max_completion_tokens"),
        ({"max_output_tokens": float("inf")}, "max_output_tokens"),
        ({"n": "many"}, "n"),
        ({"max_tokens": [1]}, "max_tokens"),
        ({"max_tokens": "9" * 5000}, "max_tokens"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs"),
    ],
)
def test_a_field_beyond_its_limit(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], param: str
) -> None:
    inner = Inner()
    answer = ask(limited(monkeypatch, inner, max_n=16, max_tokens=100), CHAT, fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert param in answer.error["message"]
    assert inner.paths == []


@pytest.mark.parametrize(
    "body",
    [b"", b"[1]", b"null", b"{", b'{"n": true}', b'{"n": "16"}', b'{"n": 16.0}',
     b'{"n": null, "max_tokens": null}'],
)  # fmt: skip
def test_vllm_judges_what_is_no_request(body: bytes) -> None:
    inner = Inner()
    assert ask(TunelineMiddleware(inner), CHAT, parts=[body]).status == 200
    assert inner.bodies == [body]


@pytest.mark.parametrize("body", ['{"prompt": "é"}'.encode("latin-1"), b"\x1f\x8b\x08\x00"])
def test_a_body_that_is_no_text(body: bytes) -> None:
    inner = Inner()
    answer = ask(TunelineMiddleware(inner), CHAT, parts=[body])
    assert (answer.status, answer.error["type"]) == (400, "BadRequestError")
    assert answer.error["message"] == "The body is not text in UTF-8."
    assert inner.paths == []


def test_a_number_that_python_does_not_read() -> None:
    """vLLM's answer has no error in OpenAI's shape."""
    inner = Inner()
    answer = ask(TunelineMiddleware(inner), CHAT, parts=[b'{"seed": ' + b"1" * 5000 + b"}"])
    assert (answer.status, answer.error["type"]) == (400, "BadRequestError")
    assert answer.error["message"] == "The body has a number of too many digits."
    assert inner.paths == []


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000])
def test_a_body_that_is_nested_too_deeply(body: bytes) -> None:
    inner = Inner()
    answer = ask(TunelineMiddleware(inner), CHAT, parts=[body])
    assert (answer.status, answer.error["type"]) == (400, "BadRequestError")
    assert "nested too deeply" in answer.error["message"]
    assert inner.paths == []


@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'["\\"]",', b"]")]
)
@pytest.mark.parametrize(("levels", "status"), [(200, 200), (201, 400)])
def test_a_body_may_have_200_levels(
    opening: bytes, closing: bytes, levels: int, status: int
) -> None:
    value = opening * (levels - 1) + b"1" + closing * (levels - 1)
    # Depth counts neither brackets in strings nor lists next to one another.
    others = b"".join(b', "%d": [{}, "[{\\"[\\\\"]' % number for number in range(300))
    body = b'{"a": ' + value + others + b"}"
    json.loads(body)
    inner = Inner()
    assert ask(TunelineMiddleware(inner), CHAT, parts=[body]).status == status
    assert len(inner.paths) == (status == 200)


def test_the_body_reaches_vllm_byte_for_byte() -> None:
    inner = Inner()
    body = (
        '{"model" : "m",\n "messages":[{"role":"user","content":"한글 \\ud83d"}], "n": 2}'.encode()
    )
    assert ask(TunelineMiddleware(inner), CHAT, parts=[body[:9], body[9:]]).status == 200
    assert inner.bodies == [body]


def test_too_many_requests_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> tuple[int, str, int]:
        inner = Inner()
        inner.gate = asyncio.Event()
        middleware = limited(monkeypatch, inner, max_in_flight=1)
        first = asyncio.create_task(send_request(middleware, CHAT, {"stream": True}))
        while not inner.running:
            await asyncio.sleep(0.001)
        second = await send_request(middleware, CHAT, {"stream": True})
        inner.gate.set()
        return (await first).status, second.headers.get("retry-after", ""), second.status

    assert asyncio.run(scene()) == (200, "5", 503)


def test_each_prompt_of_a_list_is_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> list[int]:
        inner = Inner()
        inner.gate = asyncio.Event()
        middleware = limited(monkeypatch, inner, max_in_flight=4)

        async def post(*prompts: str) -> int:
            fields = {"prompt": list(prompts)}
            return (await send_request(middleware, "/v1/completions", fields)).status

        first = asyncio.create_task(post("a", "b", "c"))
        while not inner.running:
            await asyncio.sleep(0.001)
        found = [await post(*"ab"), await post(*"abcde")]
        inner.gate.set()
        return [*found, await first, await post(*"abcd")]

    assert asyncio.run(scene()) == [503, 400, 200, 200]


def test_every_answer_names_its_request_and_the_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELINE_ARTIFACT_DIGEST", "sha256:0123")
    monkeypatch.setenv("TUNELINE_ENGINE", "0123456789ab")
    inner = Inner()
    middleware = TunelineMiddleware(inner)
    answer = ask(middleware, CHAT, {}, headers={"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-tuneline-artifact"] == "sha256:0123"
    assert answer.headers["x-tuneline-engine"] == "0123456789ab"
    assert ask(middleware, "/nowhere").headers["x-request-id"]


@pytest.mark.parametrize(
    "given", [{}, {"x-request-id": "with a blank"}, {"x-request-id": "x" * 129}],
    ids=["none", "a blank", "too long"],
)  # fmt: skip
def test_a_request_without_a_good_id_gets_a_fresh_one(given: dict[str, str]) -> None:
    inner = Inner()
    answer = ask(TunelineMiddleware(inner), CHAT, {}, headers=given)
    fresh = answer.headers["x-request-id"]
    assert len(fresh) == 32
    assert dict(inner.scopes[-1]["headers"])[b"x-request-id"] == fresh.encode()


@pytest.mark.parametrize(
    ("fields", "digest"),
    [
        ({"model": "tickets"}, "sha256:adapter"),
        ({"model": "tickets@0123"}, "sha256:adapter"),
        ({"model": "tickets-base"}, "sha256:base"),
        ({}, "sha256:base"),  # vLLM answers with the model that it has loaded
    ],
)
def test_the_base_model_next_to_an_adapter_has_its_own_digest(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], digest: str
) -> None:
    monkeypatch.setenv("TUNELINE_ARTIFACT_DIGEST", "sha256:adapter")
    monkeypatch.setenv("TUNELINE_BASE_NAME", "tickets-base")
    monkeypatch.setenv("TUNELINE_BASE_DIGEST", "sha256:base")
    answer = ask(TunelineMiddleware(Inner()), CHAT, fields)
    assert (answer.status, answer.headers["x-tuneline-artifact"]) == (200, digest)


def test_models_are_listed_without_folders() -> None:
    inner = Inner()
    inner.models = ["tickets", "tickets@0123"]
    middleware = TunelineMiddleware(inner)
    page = json.loads(ask(middleware, "/v1/models").body)
    assert [entry["root"] for entry in page["data"]] == ["tickets", "tickets@0123"]
    one = ask(middleware, "/v1/models/tickets@0123")
    assert json.loads(one.body) == {"id": "tickets@0123", "root": "tickets@0123"}
    assert json.loads(ask(middleware, "/v1/models/tickets%400123").body)["id"] == "tickets@0123"
    answer = ask(middleware, "/v1/models/other")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


def test_settings_that_are_not_known_stop_the_start() -> None:
    assert read_settings({}) == Settings()
    assert read_settings({"TUNELINE_SETTINGS": '{"routes": ["responses"]}'}).routes == (
        "responses",
    )
    with pytest.raises(ValueError, match="unknown settings max_bodies"):
        read_settings({"TUNELINE_SETTINGS": '{"max_bodies": 3}'})


CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET /", b"a" * 4096),
        (b"GET /ready HTTP/1.1\r\nhost: a\r\nx-a: ", b"a" * 4096),
        (b"GET /ready HTTP/1.1\r\nhost: a\r\n", b"x: y\r\n" * 100),
        (CHUNKED + b"0\r\nx: ", b"a" * 4096),
        (CHUNKED + b"0\r\n", b"x: y\r\n" * 100),
    ],
    ids=["line", "long header", "many headers", "long trailer", "many trailers"],
)  # fmt: skip
def test_a_header_without_an_end_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, start: bytes, piece: bytes
) -> None:
    """uvicorn's parser joins pieces and keeps headers without a limit, before any key is asked."""
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    for name in ("connection_made", "data_received"):  # `record` replaces both
        monkeypatch.setattr(HttpToolsProtocol, name, getattr(HttpToolsProtocol, name))
    monkeypatch.setattr(app_module, "call_on_sigterm", lambda _: None)
    most = 400_000

    async def scene() -> int:
        middleware = limited(monkeypatch, Lifespan(), max_body_bytes=2**16)
        config = uvicorn.Config(middleware, http="httptools", lifespan="on", log_level="critical")
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            address = listener.getsockname()
            while not server.started:
                await asyncio.sleep(0.01)
            _, writer = await asyncio.open_connection(*address)
            writer.write(start)
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < most:
                    writer.write(piece)
                    await writer.drain()
                    sent += len(piece)
                    await asyncio.sleep(0.001)  # a piece for itself, and its answer
            reader, other = await asyncio.open_connection(*address)
            other.write(b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert b"200 OK" in await reader.read()
            for one in (writer, other):
                one.close()
            server.should_exit = True
            await serving
        return sent

    assert asyncio.run(asyncio.wait_for(scene(), 60)) < most


class Lifespan(Inner):
    """Starts and ends as vLLM's application does."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await super().__call__(scope, receive, send)
            return
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})


def test_large_bodies_that_come_at_once_have_a_limit_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = Inner()
    middleware = limited(monkeypatch, inner, max_body_bytes=1024, body_timeout_s=60.0)

    async def send_all() -> tuple[list[int], Answer, Answer]:
        held = [
            asyncio.create_task(send_request(middleware, parts=[b"x" * 1024, 30.0, b""]))
            for _ in range(MAX_READING)
        ]
        await asyncio.sleep(0)
        refused = await send_request(middleware, parts=[b"x" * 1000, b"x"])
        chats = [await send_request(middleware, CHAT, {"model": "m"}) for _ in range(3)]
        for one in held:
            one.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        later = await send_request(middleware, parts=[b"x" * 1000, b"x"])
        return [one.status for one in chats], refused, later

    chats, refused, later = asyncio.run(send_all())
    assert refused.status == 503
    assert refused.headers["retry-after"] == "5"
    assert refused.error["type"] == "ServiceUnavailableError"
    assert chats == [200, 200, 200]  # each keeps to its share
    assert later.status == 200  # the others have gone


def test_a_client_does_not_choose_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Inner()
    middleware = limited(monkeypatch, inner)
    headers = {"x-data-parallel-rank": "1", "x-other": "kept"}
    assert ask(middleware, CHAT, {"model": "m"}, headers=headers).status == 200
    (scope,) = inner.scopes
    names = [name for name, _ in scope["headers"]]
    assert b"x-other" in names and b"x-data-parallel-rank" not in names
