"""Keys, limits, further routes, a stuck engine and the drain, on one real server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from serving import add_key, running_server
from serving.config import ServingConfig
from serving.supervisor.group import group_members
from serving.supervisor.process import RunningServer
from tests.browser import chromium
from tuneline.models.source import ModelSource

QUESTION: Any = {"role": "user", "content": "I want a refund."}
NUM_STREAMS = 16


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    return {
        "file": str(file),
        "ops": add_key(file, "ops", {"admin": True}),
        "batch": add_key(file, "batch", {"requests_per_minute": 2, "models": ["tickets"]}),
        "single": add_key(file, "single", {"max_concurrency": 1}),
    }


@pytest.fixture(scope="module")
def server(
    base: ModelSource,
    keys: dict[str, str],
    serving_settings: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningServer]:
    config = ServingConfig(
        **{**serving_settings, "shutdown_timeout": 60, "max_model_len": 1024},
        keys_file=keys["file"], routes=["responses", "messages", "tokenize", "page"],
        log_format="json",
    )  # fmt: skip
    log_path = tmp_path_factory.mktemp("operations") / "vllm.log"
    with running_server(config, base, name="tickets", log_path=log_path) as running:
        yield running


def client_of(server: RunningServer, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.endpoint.url, api_key=key, max_retries=0)


def test_named_keys_and_their_limits(server: RunningServer, keys: dict[str, str]) -> None:
    with pytest.raises(openai.AuthenticationError) as wrong:
        client_of(server, "tl-wrong").models.list()
    assert wrong.value.code == "invalid_api_key"
    batch = client_of(server, keys["batch"])
    options: Any = {"messages": [QUESTION], "max_tokens": 4, "temperature": 0}
    for _ in range(2):
        batch.chat.completions.create(model="tickets", **options)
    with pytest.raises(openai.RateLimitError) as limited:
        batch.chat.completions.create(model="tickets", **options)
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 30
    log = server.log_path.read_text()
    assert '"key": "batch"' in log
    assert not any(secret in log for secret in (keys["ops"], keys["batch"], "refund"))


def test_the_openai_client_waits_as_long_as_a_refusal_says(
    server: RunningServer, keys: dict[str, str]
) -> None:
    body: Any = {"model": "tickets", "messages": [QUESTION], "max_tokens": 600,
                 "extra_body": {"ignore_eos": True}}  # fmt: skip
    patient = openai.OpenAI(base_url=server.endpoint.url, api_key=keys["single"], max_retries=90)

    def length() -> int:
        usage = patient.chat.completions.create(**body).usage
        return 0 if usage is None else usage.completion_tokens

    with ThreadPoolExecutor(1) as pool:
        first = patient.chat.completions.create(**body, stream=True)
        next(first)  # this request is in progress when the second request comes
        second = pool.submit(length)
        assert [chunk.choices[0].finish_reason for chunk in first][-1] == "length"
        assert second.result() == 600
    refused = re.search(r'"key": "single".*"status": 429', server.log_path.read_text())
    assert refused is not None, "the two requests did not meet"


def test_further_routes(server: RunningServer, keys: dict[str, str]) -> None:
    client = client_of(server, keys["ops"])
    answer = (
        client.chat.completions.create(
            model="tickets",
            messages=[QUESTION],
            temperature=0,
            max_tokens=24,
        )
        .choices[0]
        .message.content
    )
    response = client.responses.create(
        model="tickets", input="I want a refund.", temperature=0, max_output_tokens=24
    )
    assert response.output_text == answer
    assert client.models.retrieve("tickets").model_dump()["root"] == "tickets"
    url = server.endpoint.url
    headers = {"x-api-key": keys["ops"], "anthropic-version": "2023-06-01"}
    body = {"model": "tickets", "max_tokens": 24, "temperature": 0, "messages": [QUESTION]}
    message = httpx.post(f"{url}/messages", json=body, headers=headers, timeout=60).json()
    assert message["content"] == [{"type": "text", "text": answer}]
    tokenize = url.removesuffix("/v1") + "/tokenize"
    batch = {"x-api-key": keys["batch"]}
    assert httpx.post(tokenize, json={"prompt": "a"}, headers=batch).status_code == 403
    assert httpx.post(tokenize, json={"prompt": "a"}, headers=headers).status_code == 200


def test_the_chat_page_talks_to_the_model(server: RunningServer, keys: dict[str, str]) -> None:
    address = server.endpoint.url.removesuffix("/v1")
    with chromium() as browser:
        context = browser.new_context(http_credentials={"username": "me", "password": keys["ops"]})
        page = context.new_page()
        page.goto(f"{address}/chat")
        page.fill("#tokens", "8")
        page.fill("#message", "I want a refund.")
        page.press("#message", "Enter")
        page.locator(".figures").filter(has_text=" tokens").wait_for()
        said = page.locator(".answer p").first.inner_text()
        assert page.locator("#model").input_value() == "tickets"
        context.close()
    options: Any = {"messages": [QUESTION], "max_tokens": 8, "temperature": 0}
    whole = client_of(server, keys["ops"]).chat.completions.create(model="tickets", **options)
    content = whole.choices[0].message.content
    assert content and said.split() == content.split()
    assert keys["ops"] not in server.log_path.read_text()


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
def test_no_route_takes_a_template_from_a_request(
    server: RunningServer, keys: dict[str, str], path: str
) -> None:
    body = {"model": "tickets", "messages": [QUESTION], "input": "x", "max_tokens": 4}
    answer = httpx.post(
        f"{server.endpoint.url}/{path}",
        json={**body, "chat_template": "harmless"},
        headers={"x-api-key": keys["ops"]},
    )
    assert answer.status_code == 400
    assert "chat_template" in answer.json()["error"]["message"]


def test_an_answer_under_a_json_schema_ends(server: RunningServer, keys: dict[str, str]) -> None:
    schema = {
        "type": "object",
        "properties": {"team": {"enum": ["billing", "access"]}, "urgent": {"type": "boolean"}},
        "required": ["team", "urgent"],
        "additionalProperties": False,
    }
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema}}
    client = client_of(server, keys["ops"])
    for question in ("I want a refund.", "I cannot log in."):
        choice = client.chat.completions.create(
            model="tickets", messages=[{"role": "user", "content": question}], temperature=0,
            max_tokens=120, response_format=response_format,
        ).choices[0]  # fmt: skip
        assert choice.finish_reason == "stop"
        assert set(json.loads(choice.message.content or "")) == {"team", "urgent"}


def test_a_stuck_engine_is_found_and_comes_back(
    server: RunningServer, keys: dict[str, str]
) -> None:
    address = server.endpoint.url.removesuffix("/v1")
    others = [pid for pid in group_members(server.pid) if pid != server.pid]
    assert others
    headers = {"authorization": f"Bearer {keys['ops']}"}
    body = {"model": "tickets", "messages": [QUESTION], "max_tokens": 900, "stream": True,
            "ignore_eos": True}  # fmt: skip
    seen: dict[str, float] = {}
    with httpx.stream(
        "POST", f"{address}/v1/chat/completions", json=body, headers=headers, timeout=200
    ) as answer:
        events = answer.iter_lines()
        next(events)
        try:
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
            stopped_s = time.monotonic()
            while len(seen) < 2 and time.monotonic() - stopped_s < 150:
                for path in ("/ready", "/health"):
                    if httpx.get(address + path, timeout=10).status_code == 503:
                        seen.setdefault(path, time.monotonic() - stopped_s)
                time.sleep(0.2)
            rest = [line for line in events if line]
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)
    # 13 and 25 s on a free machine. The limit follows the longest silence that the engine had, and
    # other tests that take its CPUs make that longer.
    assert seen["/ready"] < seen["/health"] < 120
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == 503
    assert rest[-1] == "data: [DONE]"
    deadline_s = time.monotonic() + 30
    while httpx.get(f"{address}/ready").status_code != 200:
        assert time.monotonic() < deadline_s, "the engine moves and /ready says 503"
        time.sleep(0.2)
    again = client_of(server, keys["ops"]).chat.completions.create(
        model="tickets",
        messages=[QUESTION],
        max_tokens=4,
    )
    assert again.choices[0].message.content


def test_a_drain_loses_nothing_and_a_half_sent_request_does_not_hold_it(
    server: RunningServer, keys: dict[str, str]
) -> None:
    """The last test of the module: the server ends in it."""
    address = httpx.URL(server.endpoint.url)
    headers = {"authorization": f"Bearer {keys['ops']}"}

    async def stream(client: httpx.AsyncClient, started: asyncio.Event) -> str:
        body = {"model": "tickets", "messages": [QUESTION], "max_tokens": 150, "stream": True,
                "ignore_eos": True}  # fmt: skip
        text = ""
        async with client.stream("POST", "chat/completions", json=body) as answer:
            assert answer.status_code == 200
            async for piece in answer.aiter_text():
                text += piece
                started.set()
        return text

    async def short(client: httpx.AsyncClient) -> str:
        body = {"model": "tickets", "messages": [QUESTION], "max_tokens": 4}
        try:
            answer = await client.post("chat/completions", json=body)
        except httpx.ConnectError:
            return "closed"
        if answer.status_code == 503 and "retry-after" in answer.headers:
            return "refused"
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        assert choice["finish_reason"] in ("stop", "length")
        assert choice["message"]["content"]
        return "whole"

    async def scene() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=server.endpoint.url, headers=headers, timeout=120, limits=limits
        ) as client:
            started = [asyncio.Event() for _ in range(NUM_STREAMS)]
            streams = [asyncio.create_task(stream(client, event)) for event in started]
            await asyncio.gather(*(event.wait() for event in started))
            requests: list[asyncio.Task[str]] = []
            for number in range(60):
                if number == 30:
                    os.kill(server.pid, signal.SIGTERM)
                requests.append(asyncio.create_task(short(client)))
                await asyncio.sleep(0.01)
            whole = await asyncio.gather(*streams)
            assert all('"finish_reason":"length"' in text for text in whole)
            assert all(text.endswith("data: [DONE]\n\n") for text in whole)
            return await asyncio.gather(*requests)

    with socket.create_connection((address.host, address.port or 80)) as half:
        half.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer " + keys["ops"].encode() + b"\r\nContent-Length: 900\r\n\r\n{"
        )
        results = asyncio.run(scene())
        ended_s = time.monotonic()
        while group_members(server.pid):
            assert time.monotonic() - ended_s < 20, "the half-sent request holds the drain"
            time.sleep(0.1)
    # How many came before the signal depends on the machine; each is whole or refused.
    assert results.count("whole") >= 1
    assert results.count("refused") >= 1
