"""Conversations with tool calls, as a server and its chat template take them."""

from __future__ import annotations

import json
from typing import Any

from tuneline.core.messages import Message, as_request, with_call_ids


def call(number: int, **more: Any) -> dict[str, Any]:
    function = {"name": "look", "arguments": {"n": number, "where": "서울"}}
    return {**more, "type": "function", "function": function}


def talk(*ids: dict[str, Any]) -> list[Message]:
    return [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "tool_calls": [call(1, **ids[0]), call(2, **ids[1])]},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
        {"role": "assistant", "tool_calls": [call(3, **ids[2])]},
        {"role": "tool", "content": "three"},
    ]


def test_calls_without_an_id_get_one_and_results_name_their_call() -> None:
    found = with_call_ids(talk({}, {"id": "abc"}, {}))
    made = [one["id"] for message in found for one in message.get("tool_calls", [])]
    assert made == ["call00001", "abc", "call00003"]
    answered = [message["tool_call_id"] for message in found if message["role"] == "tool"]
    assert answered == made
    # Mistral's templates take nine letters and digits.
    assert all(len(one) == 9 and one.isalnum() for one in (made[0], made[2]))
    assert with_call_ids(found) == found
    for end in range(1, len(found)):
        assert with_call_ids(talk({}, {"id": "abc"}, {})[:end]) == found[:end]


def test_a_result_that_names_its_call_keeps_the_name() -> None:
    messages = talk({"id": "a"}, {"id": "b"}, {})
    messages[2]["tool_call_id"] = "b"
    answered = [m["tool_call_id"] for m in with_call_ids(messages) if m["role"] == "tool"]
    assert answered == ["b", "a", "call00003"]


def test_a_request_has_arguments_as_text() -> None:
    messages = talk({}, {}, {})
    sent = as_request(messages)
    for before, after in zip(with_call_ids(messages), sent, strict=True):
        for one, other in zip(
            before.get("tool_calls", []), after.get("tool_calls", []), strict=True
        ):
            text = other["function"]["arguments"]
            assert json.loads(text) == one["function"]["arguments"] and "서울" in text
            assert other["id"] == one["id"]
    assert as_request(sent) == sent
    assert sent[0] == messages[0]
