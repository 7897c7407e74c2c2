"""Named keys: who is let in, with which limits, and what a change of the file does."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from serving import add_key, remove_key
from serving.middleware import keys as keys_module
from serving.middleware.app import TunelineMiddleware
from serving.middleware.asgi import Message, Receive, Scope, Send
from serving.middleware.key_file import read_keys
from serving.middleware.keys import Bucket
from tests.unit.serving.middleware.harness import CHAT, USAGE, Inner, ask, send_request
from tuneline.core.errors import ConfigError

CHAT_FIELDS = {"model": "tickets", "messages": []}


def table(name: str, key: str, **limits: Any) -> str:
    lines = [f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"']
    lines += [f"{limit} = {json.dumps(value)}" for limit, value in limits.items()]
    return "\n".join([f"[{name}]", *lines, ""])


@pytest.fixture
def keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys.toml"
    monkeypatch.setenv("TUNELINE_KEYS_FILE", str(path))
    monkeypatch.setattr(keys_module, "RELOAD_INTERVAL_S", 0.0)
    return path


@pytest.mark.parametrize("presented", [None, "wrong", "", "key-of-a ", "KEY-OF-A"])
def test_a_wrong_key_is_refused_in_openai_s_shape(keys_file: Path, presented: str | None) -> None:
    keys_file.write_text(table("a", "key-of-a"))
    inner = Inner()
    answer = ask(TunelineMiddleware(inner), CHAT, CHAT_FIELDS, key=presented)
    if presented == "key-of-a ":  # white space around a header's value is not part of it
        assert answer.status == 200
        return
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.error == {
        "message": "The API key is missing or is not known.",
        "type": "AuthenticationError", "param": None, "code": "invalid_api_key",
    }  # fmt: skip
    assert inner.paths == []


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/completions", "/v1/models", "/v1/models/tickets", "/v1/responses",
             "/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/chat"],
)  # fmt: skip
def test_every_route_of_the_api_needs_a_key(
    keys_file: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    keys_file.write_text(table("a", "key-of-a"))
    everything = {"routes": ["responses", "messages", "tokenize", "page"]}
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps(everything))
    inner = Inner()
    assert ask(TunelineMiddleware(inner), path, CHAT_FIELDS).status == 401
    assert inner.paths == []


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/version"])
def test_probes_and_metrics_need_no_key(keys_file: Path, path: str) -> None:
    keys_file.write_text(table("a", "key-of-a"))
    assert ask(TunelineMiddleware(Inner()), path).status == 200


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_vllm_sees_its_own_key_in_place_of_the_client_s(
    keys_file: Path, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    keys_file.write_text(table("a", "key-of-a"))
    monkeypatch.setenv("VLLM_API_KEY", "vllm-s-own")
    inner = Inner()
    value = "key-of-a" if header == "x-api-key" else "bearer key-of-a"
    answer = ask(TunelineMiddleware(inner), CHAT, CHAT_FIELDS, headers={header: value})
    assert answer.status == 200
    headers = dict(inner.scopes[0]["headers"])
    assert headers[b"authorization"] == b"Bearer vllm-s-own"
    assert b"x-api-key" not in headers


@pytest.mark.parametrize(("limits", "expected"), [({}, b"0"), ({"priority": -5}, b"-5")])
def test_a_key_has_a_priority_that_its_client_cannot_choose(
    keys_file: Path, limits: dict[str, int], expected: bytes
) -> None:
    keys_file.write_text(table("a", "key-of-a", **limits))
    inner = Inner()
    headers = {"X-Vllm-Priority": "-1000"}
    fields = {**CHAT_FIELDS, "priority": -1000}
    assert (
        ask(TunelineMiddleware(inner), CHAT, fields, key="key-of-a", headers=headers).status == 200
    )
    seen = [value for name, value in inner.scopes[0]["headers"] if name == b"x-vllm-priority"]
    assert seen == [expected]


@pytest.mark.parametrize(
    ("priority", "beam", "status"),
    [(5, True, 400), (-5, 1, 400), (5, False, 200), (0, True, 200), (None, True, 200)],
)
def test_a_key_with_a_priority_may_not_ask_for_a_beam_search(
    keys_file: Path, priority: int | None, beam: object, status: int
) -> None:
    limits = {} if priority is None else {"priority": priority}
    keys_file.write_text(table("a", "key-of-a", **limits))
    inner = Inner()
    fields = {**CHAT_FIELDS, "use_beam_search": beam}
    answer = ask(TunelineMiddleware(inner), CHAT, fields, key="key-of-a")
    assert answer.status == status
    assert len(inner.paths) == (status == 200)
    if status == 400:
        assert (answer.error["type"], answer.error["param"]) == (
            "BadRequestError", "use_beam_search",
        )  # fmt: skip
        assert "'a' has a priority" in answer.error["message"]


def test_vllm_s_own_key_is_named_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "only")
    labels = {"key": "default", "status": "200"}
    before = REGISTRY.get_sample_value("tuneline_key_requests_total", labels) or 0.0
    middleware = TunelineMiddleware(Inner())
    assert ask(middleware, CHAT, CHAT_FIELDS, key="only").status == 200
    assert ask(middleware, CHAT, CHAT_FIELDS, key="other").status == 401
    assert REGISTRY.get_sample_value("tuneline_key_requests_total", labels) == before + 1


@pytest.mark.parametrize("fields", [{"model": "tickets-base"}, {}], ids=["another", "none"])
def test_a_key_may_use_only_its_models(keys_file: Path, fields: dict[str, str]) -> None:
    keys_file.write_text(table("a", "key-of-a", models=["tickets"]))
    middleware = TunelineMiddleware(Inner())
    assert ask(middleware, CHAT, {"model": "tickets"}, key="key-of-a").status == 200
    answer = ask(middleware, CHAT, fields, key="key-of-a")
    assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")


def test_a_key_counts_only_the_tokens_of_its_models(
    keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_file.write_text(table("a", "key-of-a", models=["tickets"]))
    monkeypatch.setenv("TUNELINE_SETTINGS", '{"routes": ["messages"]}')
    inner = Inner()
    middleware = TunelineMiddleware(inner)
    path = "/v1/messages/count_tokens"
    answer = ask(middleware, path, {"model": "tickets-base"}, key="key-of-a")
    assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
    assert inner.paths == []
    assert ask(middleware, path, {"model": "tickets"}, key="key-of-a").status == 200


def test_admin_routes_need_an_admin_key(keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys_file.write_text(table("a", "key-of-a") + table("root", "key-of-root", admin=True))
    monkeypatch.setenv("TUNELINE_SETTINGS", '{"routes": ["tokenize"]}')
    middleware = TunelineMiddleware(Inner())
    answer = ask(middleware, "/tokenize", {}, key="key-of-a")
    assert (answer.status, answer.error["code"]) == (403, "admin_key_required")
    assert ask(middleware, "/tokenize", {}, key="key-of-root").status == 200


def test_requests_per_minute(keys_file: Path) -> None:
    keys_file.write_text(table("a", "key-of-a", requests_per_minute=3) + table("b", "key-of-b"))
    middleware = TunelineMiddleware(Inner())
    statuses = [ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a").status for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    answer = ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a")
    assert answer.error["type"] == "RateLimitError"
    assert "3 requests per minute" in answer.error["message"]
    # One request every 20 s.
    assert 15 <= int(answer.headers["retry-after"]) <= 20
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-b").status == 200


def test_requests_at_once(keys_file: Path) -> None:
    keys_file.write_text(table("a", "key-of-a", max_concurrency=2))

    async def scene() -> list[int]:
        inner = Inner()
        inner.gate = asyncio.Event()
        middleware = TunelineMiddleware(inner)
        running = [
            asyncio.create_task(send_request(middleware, CHAT, CHAT_FIELDS, key="key-of-a"))
            for _ in range(2)
        ]
        while inner.running < 2:
            await asyncio.sleep(0.001)
        third = await send_request(middleware, CHAT, CHAT_FIELDS, key="key-of-a")
        inner.gate.set()
        answers = await asyncio.gather(*running)
        fourth = await send_request(middleware, CHAT, CHAT_FIELDS, key="key-of-a")
        return [third.status, *(answer.status for answer in answers), fourth.status]

    assert asyncio.run(scene()) == [429, 200, 200, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_per_minute_are_those_that_the_server_reports(keys_file: Path, stream: bool) -> None:
    keys_file.write_text(table("a", "key-of-a", tokens_per_minute=20))
    name = {"key": "a"}
    before = REGISTRY.get_sample_value("tuneline_key_tokens_total", name) or 0.0
    inner = Inner()
    middleware = TunelineMiddleware(inner)
    fields = {**CHAT_FIELDS, "stream": stream}
    answers = [ask(middleware, CHAT, fields, key="key-of-a") for _ in range(3)]
    # 20 - 12 = 8 is above zero, 8 - 12 is not.
    assert [answer.status for answer in answers] == [200, 200, 429]
    after = REGISTRY.get_sample_value("tuneline_key_tokens_total", name)
    assert after == before + 2 * USAGE["total_tokens"]
    # vLLM leaves `system_fingerprint` out of an answer that it asks for the usage.
    assert [json.loads(body) for body in inner.bodies] == [fields] * 2


def event(fields: Any) -> bytes:
    return f"event: x\ndata: {json.dumps(fields)}\n\n".encode()


MESSAGE = {"id": "1", "content": [{"type": "tool_use", "input": {"usage": {"total_tokens": 0}}}]}
# As vLLM 0.32 answers; the cached tokens are those of a server with `enable_prompt_tokens_details`.
COUNTED = {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": 4}


@pytest.mark.parametrize(
    ("path", "pieces"),
    [
        ("/v1/messages", [json.dumps({**MESSAGE, "usage": COUNTED}).encode()]),
        (
            "/v1/messages",
            [
                event({"message": {"usage": {"input_tokens": 7, "output_tokens": 0}}}),
                event({"delta": {"text": '"usage": {"output_tokens": 900}'}}),
                event({"delta": {"stop_reason": "end_turn"}, "usage": COUNTED}),
            ],
        ),
        (
            "/v1/responses",
            [
                event({"response": {"usage": None}}),
                event({"response": {"usage": {
                    "input_tokens": 7, "input_tokens_details": {"cached_tokens": 4},
                    "output_tokens": 5, "total_tokens": 12,
                }}}),
            ],
        ),
    ],
)  # fmt: skip
def test_the_tokens_of_each_route_are_counted(
    keys_file: Path, monkeypatch: pytest.MonkeyPatch, path: str, pieces: list[bytes]
) -> None:
    async def vllm(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number, piece in enumerate(pieces, start=1):
            more = number < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    keys_file.write_text(table("a", "key-of-a", tokens_per_minute=1000))
    monkeypatch.setenv("TUNELINE_SETTINGS", '{"routes": ["messages", "responses"]}')
    middleware = TunelineMiddleware(vllm)
    answer = ask(middleware, path, CHAT_FIELDS, key="key-of-a")
    assert answer.body == b"".join(pieces)
    (use,) = middleware.keys._uses.values()
    assert use.tokens is not None
    assert use.tokens.level == 1000 - 12


def test_a_stream_that_is_left_costs_more_than_its_prompt(
    keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def vllm(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        usage = {"input_tokens": 7, "output_tokens": 0}
        for piece in [event({"message": {"usage": usage}}), *[event({"delta": "x"})] * 50]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        raise ConnectionError

    keys_file.write_text(table("a", "key-of-a", tokens_per_minute=1000))
    monkeypatch.setenv("TUNELINE_SETTINGS", '{"routes": ["messages"]}')
    middleware = TunelineMiddleware(vllm)

    async def scene() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": json.dumps(CHAT_FIELDS).encode()}

        async def send(message: Message) -> None:
            return

        scope = {"type": "http", "path": "/v1/messages", "method": "POST",
                 "headers": [(b"x-api-key", b"key-of-a")]}  # fmt: skip
        await middleware(scope, receive, send)

    asyncio.run(scene())
    (use,) = middleware.keys._uses.values()
    assert use.tokens is not None
    assert use.tokens.level <= 1000 - 50


@pytest.mark.parametrize("image", [b"", b"data:image/png;base64," + b"A" * 40_000])
def test_a_client_that_leaves_before_its_answer_pays_for_its_prompt(
    keys_file: Path, image: bytes
) -> None:
    """vLLM sends nothing after it has heard that the client is gone."""

    async def vllm(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    keys_file.write_text(table("a", "key-of-a", tokens_per_minute=1000))
    middleware = TunelineMiddleware(vllm)
    body = b'{"prompt": "%s", "url": "%s"}' % (b"word " * 400, image)
    messages: list[Message] = [
        {"type": "http.request", "body": body}, {"type": "http.disconnect"},
    ]  # fmt: skip

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError("the client is gone")

    scope = {"type": "http", "path": "/v1/completions", "method": "POST",
             "headers": [(b"x-api-key", b"key-of-a")]}  # fmt: skip
    asyncio.run(middleware(scope, receive, send))
    (use,) = middleware.keys._uses.values()
    assert use.tokens is not None
    assert 1000 - use.tokens.level == pytest.approx(400 * 5 / 4, rel=0.05)


@pytest.mark.parametrize(
    ("limits", "prompts", "statuses"),
    [
        # Each prompt of a list counts as a request.
        ({"requests_per_minute": 10}, [["a"] * 8, ["a"] * 8, "a"], [200, 200, 429]),
        ({"requests_per_minute": 10}, [[5, 6, 7], [[5], [6]], "a"], [200, 200, 200]),
        ({"max_concurrency": 2}, [["a", "b"], [[5], [6], [7]], [5, 6, 7]], [200, 400, 200]),
    ],
)
def test_a_list_of_prompts_counts_as_so_many_requests(
    keys_file: Path, limits: dict[str, Any], prompts: list[Any], statuses: list[int]
) -> None:
    keys_file.write_text(table("a", "key-of-a", **limits))
    middleware = TunelineMiddleware(Inner())
    asked = [
        ask(middleware, "/v1/completions", {"prompt": prompt}, key="key-of-a").status
        for prompt in prompts
    ]
    assert asked == statuses
    (use,) = middleware.keys._uses.values()
    assert use.in_flight == 0


def test_a_list_of_prompts_waits_for_its_turn(keys_file: Path) -> None:
    keys_file.write_text(table("a", "key-of-a", max_concurrency=3))

    async def scene() -> list[int]:
        inner = Inner()
        inner.gate = asyncio.Event()
        middleware = TunelineMiddleware(inner)

        async def post(prompt: Any) -> int:
            path = "/v1/completions"
            return (await send_request(middleware, path, {"prompt": prompt}, key="key-of-a")).status

        running = asyncio.create_task(post(["a", "b"]))
        while not inner.running:
            await asyncio.sleep(0.001)
        two = await post(["a", "b"])
        inner.gate.set()
        return [two, await running, await post(["a", "b"])]

    assert asyncio.run(scene()) == [429, 200, 200]


def test_a_key_of_the_environment_may_end_with_a_line_break(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "key-of-a\n")
    middleware = TunelineMiddleware(Inner())
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a").status == 200
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key").status == 401


def test_less_than_one_request_per_minute_is_a_limit_that_can_be_kept(keys_file: Path) -> None:
    keys_file.write_text(table("a", "key-of-a", requests_per_minute=0.5, tokens_per_minute=0.5))
    middleware = TunelineMiddleware(Inner())
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a").status == 200
    answer = ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a")
    assert answer.status == 429
    assert 100 < int(answer.headers["retry-after"]) <= 120
    bucket = Bucket(0.5, 1.0, updated_s=0.0)
    bucket.take(1)
    assert [bucket.wait_s(1, now_s) for now_s in (0.0, 60.0, 120.0, 9000.0)] == [120, 60, 0, 0]
    assert bucket.level == 1


def test_a_file_that_comes_back_unchanged_is_well(keys_file: Path) -> None:
    def statuses() -> tuple[int, float | None]:
        status = ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a").status
        return status, REGISTRY.get_sample_value("tuneline_keys_file_ok")

    keys_file.write_text(table("a", "key-of-a"))
    middleware = TunelineMiddleware(Inner())
    away, broken = keys_file.with_name("away"), keys_file.with_name("broken")
    broken.write_text("[b\n")
    assert statuses() == (200, 1)
    keys_file.rename(away)
    assert statuses() == (200, 0)
    away.rename(keys_file)
    assert statuses() == (200, 1)
    keys_file.rename(away)
    broken.rename(keys_file)
    assert statuses() == (200, 0)
    assert statuses() == (200, 0), "the broken file is not in use, although it is unchanged"
    away.replace(keys_file)
    assert statuses() == (200, 1)


def test_a_client_that_asks_for_the_usage_of_a_stream_gets_it(keys_file: Path) -> None:
    keys_file.write_text(table("a", "key-of-a", tokens_per_minute=20))
    fields = {**CHAT_FIELDS, "stream": True, "stream_options": {"include_usage": True}}
    answer = ask(TunelineMiddleware(Inner()), CHAT, fields, key="key-of-a")
    assert b'"total_tokens": 12' in answer.body


def test_the_file_is_read_again_when_it_changes(
    keys_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys_file.write_text(table("a", "key-of-a"))
    middleware = TunelineMiddleware(Inner())
    keys_file.write_text(table("b", "key-of-b") + "\n")
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a").status == 401
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-b").status == 200
    keys_file.write_text("[b\nbroken, and longer than before")
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-b").status == 200
    assert REGISTRY.get_sample_value("tuneline_keys_file_ok") == 0
    assert "the earlier keys stay" in capsys.readouterr().err
    for half_written in ("", "\n"):
        keys_file.write_text(half_written)
        assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-b").status == 200
        assert "the earlier keys stay: it is empty" in capsys.readouterr().err
    keys_file.unlink()
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-b").status == 200
    keys_file.write_text(table("c", "key-of-c"))
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-b").status == 401
    assert REGISTRY.get_sample_value("tuneline_keys_file_ok") == 1


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute", "max_concurrency"])
def test_a_new_key_with_a_limit_of_zero_is_refused(limit: str, tmp_path: Path) -> None:
    """It got no limit at all."""
    with pytest.raises(ConfigError, match=f"{limit} is 0; expected a number above 0"):
        add_key(tmp_path / "keys.toml", "a", {limit: 0, "admin": False, "models": None})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_limit_that_is_not_a_number_is_named(value: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"requests_per_minute is {value}; expected a number"):
        add_key(tmp_path / "keys.toml", "a", {"requests_per_minute": value})
    assert list(tmp_path.iterdir()) == []


def test_a_key_for_a_model_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models is \[''\]; expected a list of names"):
        add_key(tmp_path / "keys.toml", "a", {"models": [""]})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_a_file_of_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory") as caught:
        remove_key(tmp_path, "a")
    # Another key in the same file would end in the same way.
    assert "keys add" not in str(caught.value)


def test_the_last_key_that_is_removed_is_refused(keys_file: Path) -> None:
    presented = add_key(keys_file, "a", {"priority": 3})
    middleware = TunelineMiddleware(Inner())
    assert ask(middleware, CHAT, CHAT_FIELDS, key=presented).status == 200
    remove_key(keys_file, "a")
    assert ask(middleware, CHAT, CHAT_FIELDS, key=presented).status == 401
    assert REGISTRY.get_sample_value("tuneline_keys_file_ok") == 1
    other = add_key(keys_file, "b", {})
    assert ask(middleware, CHAT, CHAT_FIELDS, key=other).status == 200
    assert "No key" not in keys_file.read_text()


def test_a_change_of_one_key_leaves_the_use_of_another(keys_file: Path) -> None:
    keys_file.write_text(table("a", "key-of-a", requests_per_minute=1))
    middleware = TunelineMiddleware(Inner())
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a").status == 200
    keys_file.write_text(table("a", "key-of-a", requests_per_minute=1) + table("b", "key-of-b"))
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-b").status == 200
    assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a").status == 429


def test_a_server_does_not_start_without_its_keys(keys_file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TunelineMiddleware(Inner())
    keys_file.write_text("[a]\nsha256 = 5\n")
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        TunelineMiddleware(Inner())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = 1", "a: expected a table, [a]"),
        ("[a]\nlimit = 3", "[a]: unknown limit; known: admin, max_concurrency, models, "),
        ("[a]", "[a]: sha256 is not 64 hexadecimal digits in lower case"),
        (table("default", "k"), "[default]: expected a letter or digit"),
        (table('"a b"', "k"), "[a b]: expected a letter or digit"),
        (table("a", "k", requests_per_minute=0), "[a]: requests_per_minute is 0; expected"),
        (table("a", "k", max_concurrency=True), "[a]: max_concurrency is True; expected"),
        (table("a", "k", priority=1.5), "[a]: priority is 1.5; expected a whole number"),
        (table("a", "k", priority=True), "[a]: priority is True; expected a whole number"),
        (table("a", "k", priority=10**9), "[a]: priority is 1000000000; expected"),
        (table("a", "k", admin="yes"), "[a]: admin is 'yes'; expected true or false"),
        (table("a", "k", models="tickets"), "[a]: models is 'tickets'; expected a list of names"),
        (table("a", "k") + table("b", "k"), "two names have the same sha256"),
        ("[a", "Expected ']'"),
    ],
)
def test_a_broken_file_is_named_and_no_digest_is_shown(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)) as raised:
        read_keys(text)
    assert hashlib.sha256(b"k").hexdigest() not in str(raised.value)


def test_a_bucket_fills_with_time() -> None:
    bucket = Bucket(per_minute=60, level=60, updated_s=0.0)
    bucket.take(90)
    assert bucket.wait_s(1, 0.0) == pytest.approx(31)
    assert bucket.wait_s(1, 10.0) == pytest.approx(21)
    assert bucket.wait_s(1, 31.0) == 0
    assert bucket.wait_s(60, 10_000.0) == 0
    assert bucket.level == 60  # no more than a minute's worth


def test_no_key_is_ever_in_a_log(
    keys_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_file.write_text(table("a", "key-of-a"))
    for log_format in ("text", "json"):
        monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps({"log_format": log_format}))
        middleware = TunelineMiddleware(Inner())
        prompt = {"model": "m", "messages": [{"role": "user", "content": "a private question"}]}
        ask(middleware, CHAT, prompt, key="key-of-a", headers={"x-request-id": "id-1"})
        ask(middleware, CHAT, prompt, key="a-wrong-key")
    log = capsys.readouterr().err
    lines = log.splitlines()
    assert len(lines) == 4
    assert "request=id-1 key=a" in lines[0]
    assert json.loads(lines[2])["key"] == "a"
    assert json.loads(lines[3])["status"] == 401
    for secret in ("key-of-a", "a-wrong-key", "private"):
        assert secret not in log
    assert os.environ["TUNELINE_KEYS_FILE"] not in log


def test_a_log_that_takes_nothing_fails_no_request(
    keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_file.write_text(table("a", "key-of-a"))
    middleware = TunelineMiddleware(Inner())
    keys_file.write_text(table("a", "key-of-a", max_concurrency=3))  # a change is said, too
    full = io.TextIOWrapper(io.BufferedWriter(io.FileIO("/dev/full", "w")))
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", full)
        assert ask(middleware, CHAT, CHAT_FIELDS, key="key-of-a").status == 200
    with pytest.raises(OSError, match="No space left"):
        full.close()
