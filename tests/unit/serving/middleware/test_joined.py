"""The answer of each route as one document, from the events of its stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.middleware.joined import join_answer

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def stream(*events: dict[str, Any], names: bool = False) -> bytes:
    lines = []
    for event in events:
        name = f"event: {event['type']}\n" if names else ""
        lines.append(f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n")
    return "".join(lines).encode() + (b"" if names else b"data: [DONE]\n\n")


def delta(index: int = 0, finish: str | None = None, **parts: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": parts, "finish_reason": finish}
    return {"id": "chatcmpl-1", "model": "m", "choices": [choice]}


def test_text_and_reasoning_of_a_chat_are_joined() -> None:
    body = stream(
        delta(role="assistant", content=""),
        delta(reasoning="둘 더하기 "), delta(reasoning="둘."),
        delta(content="It is "), delta(content="넷."),
        delta(finish="stop"),
        {"choices": [], "usage": {"completion_tokens": 9}},
    )  # fmt: skip
    assert join_answer(CHAT, body, is_stream=True) == {
        "object": "chat.completion",
        "id": "chatcmpl-1",
        "model": "m",
        "usage": {"completion_tokens": 9},
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": "It is 넷.",
                    "reasoning": "둘 더하기 둘.",
                },
            }
        ],
    }


def test_calls_of_tools_are_joined_by_their_index() -> None:
    def call(index: int, **parts: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, **parts}])

    body = stream(
        call(0, id="a", type="function", function={"name": "look", "arguments": ""}),
        call(0, function={"arguments": '{"at": '}),
        call(1, id="b", type="function", function={"name": "go", "arguments": "{}"}),
        call(0, function={"arguments": '"x"}'}),
        delta(finish="tool_calls"),
    )
    found = join_answer(CHAT, body, is_stream=True)
    assert found is not None
    (choice,) = found["choices"]
    assert [(one["id"], one["function"]) for one in choice["message"]["tool_calls"]] == [
        ("a", {"name": "look", "arguments": '{"at": "x"}'}),
        ("b", {"name": "go", "arguments": "{}"}),
    ]


def test_several_choices_of_a_stream_stay_apart() -> None:
    body = stream(
        delta(1, content="b"), delta(0, content="a"), delta(1, content="B", finish="stop"),
        delta(0, finish="length"),
    )  # fmt: skip
    found = join_answer(CHAT, body, is_stream=True)
    assert found is not None
    assert [(c["message"]["content"], c["finish_reason"]) for c in found["choices"]] == [
        ("a", "length"), ("bB", "stop"),
    ]  # fmt: skip


def test_the_text_of_a_completion_is_joined() -> None:
    body = stream(
        {"choices": [{"index": 0, "text": "on", "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "e", "finish_reason": "stop"}]},
    )
    found = join_answer("/v1/completions", body, is_stream=True)
    assert found is not None
    assert found["choices"] == [{"index": 0, "text": "one", "finish_reason": "stop"}]


@pytest.mark.parametrize("end", ["response.completed", "response.incomplete"])
def test_the_last_event_of_a_response_has_all_of_it(end: str) -> None:
    whole = {"id": "resp_1", "output": [{"type": "message"}]}
    body = stream(
        {"type": "response.created", "response": {"id": "resp_1", "output": []}},
        {"type": "response.output_text.delta", "delta": "a"},
        {"type": end, "response": whole},
        names=True,
    )
    assert join_answer(RESPONSES, body, is_stream=True) == whole


def test_blocks_of_a_message_are_joined() -> None:
    body = stream(
        {"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [],
                                              "usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0,
         "delta": {"type": "text_delta", "text": "Look"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "!"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1,
         "content_block": {"type": "tool_use", "id": "t", "name": "look", "input": {}}},
        {"type": "content_block_delta", "index": 1,
         "delta": {"type": "input_json_delta", "partial_json": '{"at": '}},
        {"type": "content_block_delta", "index": 1,
         "delta": {"type": "input_json_delta", "partial_json": "1}"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"},
         "usage": {"output_tokens": 4}},
        {"type": "message_stop"},
        names=True,
    )  # fmt: skip
    assert join_answer(MESSAGES, body, is_stream=True) == {
        "id": "msg_1",
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Look!"},
            {"type": "tool_use", "id": "t", "name": "look", "input": {"at": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT, stream(delta(content="a"))),
        (CHAT, stream(delta(content="a"), {"error": {"message": "no"}}, delta(finish="stop"))),
        (CHAT, stream(delta(content="a", finish="error"))),
        (CHAT, stream(delta(content="a"), delta(finish="stop"))[:-40]),
        (CHAT, b"data: {\n\n"),
        (CHAT, b""),
        (RESPONSES, stream({"type": "response.created", "response": {}}, names=True)),
        (RESPONSES, stream({"type": "response.failed", "response": {"id": "r"}}, names=True)),
        (MESSAGES, stream({"type": "message_start", "message": {}}, names=True)),
        (MESSAGES, stream({"type": "message_start", "message": {}},
                          {"type": "error", "error": {"type": "x"}}, names=True)),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_stream_that_did_not_end_well_is_no_answer(route: str, body: bytes) -> None:
    assert join_answer(route, body, is_stream=True) is None


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"choices": [1]}', {"choices": [1]}),
        (b'{"error": {"message": "no"}}', None),
        (b"[]", None),
        (b"not JSON", None),
    ],
)
def test_a_document_is_the_answer_itself(body: bytes, found: dict[str, Any] | None) -> None:
    assert join_answer(CHAT, body, is_stream=False) == found
