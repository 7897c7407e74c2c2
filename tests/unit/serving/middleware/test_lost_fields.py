"""Fields that vLLM would drop in silence, although the answer needs them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.middleware.app import TunelineMiddleware
from tests.unit.serving.middleware.harness import CHAT, Inner, ask

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
def middleware(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> TunelineMiddleware:
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps({"routes": ["responses", "messages"]}))
    return TunelineMiddleware(inner)


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "audio", {"voice": "alloy", "format": "wav"}),
        (CHAT, "modalities", ["text", "audio"]),
        (CHAT, "functions", [{"name": "f", "parameters": {}}]),
        (CHAT, "function_call", "auto"),
        (CHAT, "web_search_options", {}),
        (CHAT, "moderation", {"model": "m"}),
        (RESPONSES, "background", True),
        (RESPONSES, "conversation", "conv_1"),
        (RESPONSES, "conversation", {"id": "conv_1"}),
        (RESPONSES, "moderation", {"model": "m"}),
        (RESPONSES, "tools", [{"type": "function", "name": "f"}, {"type": "web_search"}]),
        (RESPONSES, "tools", [{"type": "web_search_2025_08_26"}]),
        (RESPONSES, "tools", [{"type": "file_search", "vector_store_ids": ["v"]}]),
        (MESSAGES, "mcp_servers", [{"type": "url", "name": "m", "url": "https://m.example"}]),
    ],
)
def test_a_field_that_would_be_lost_is_refused(
    middleware: TunelineMiddleware, inner: Inner, path: str, field: str, value: Any
) -> None:
    answer = ask(middleware, path, {"model": "m", field: value})
    assert (answer.status, answer.error["param"]) == (400, field)
    assert answer.error["code"] == "unsupported_value"
    assert answer.error["message"].startswith(f"{field}: ")
    assert inner.paths == []


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("/v1/embeddings", [[5, 6], [7]], 400),  # as LangChain's OpenAIEmbeddings sends them
        ("/v1/embeddings", [5, 6], 400),
        ("/v1/embeddings", ["a", "b"], 200),
        ("/v1/embeddings", "a", 200),
        ("/pooling", [[5, 6]], 200),
    ],
)
def test_embeddings_take_no_ids_of_another_tokenizer(
    inner: Inner, monkeypatch: pytest.MonkeyPatch, path: str, given: Any, status: int
) -> None:
    monkeypatch.setenv("TUNELINE_SETTINGS", json.dumps({"routes": ["embeddings", "pooling"]}))
    answer = ask(TunelineMiddleware(inner), path, {"model": "m", "input": given})
    assert answer.status == status
    assert (b"check_embedding_ctx_length=False" in answer.body) == (status == 400)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"audio": None, "modalities": ["text"], "functions": [], "store": True}),
        (CHAT, {"service_tier": "flex", "prompt_cache_key": "k", "reasoning_effort": "low"}),
        (RESPONSES, {"background": False, "conversation": None, "store": True}),
        (
            RESPONSES,
            {"tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "c"}]},
        ),
        (RESPONSES, {"tools": "text"}),
        (RESPONSES, {"tools": [{"type": 5}, 7]}),
        (MESSAGES, {"mcp_servers": []}),
    ],
)
def test_other_fields_reach_vllm(
    middleware: TunelineMiddleware, inner: Inner, path: str, fields: dict[str, Any]
) -> None:
    assert ask(middleware, path, {"model": "m", **fields}).status == 200
    assert inner.paths == [path]
