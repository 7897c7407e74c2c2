"""Requests of `/v1/responses` and `/v1/messages` as messages."""

from __future__ import annotations

from typing import Any

import pytest

from training.data.recorded.conversation import Unfit, columns_of
from training.data.shapes import read_shape


def response(given: Any, output: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    status = fields.pop("status", "completed")
    return {
        "route": "/v1/responses",
        "request": {"input": given, **fields},
        "answer": {"status": status, "output": output},
    }


def said(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "role": "assistant", "content": content}


def test_a_response_to_a_text() -> None:
    thought = {"type": "reasoning", "summary": [],
               "content": [{"type": "reasoning_text", "text": "Hm."}]}  # fmt: skip
    columns = columns_of(response("Hi", [thought, said("Hello.")], instructions="Be kind."))
    assert columns == {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "reasoning_content": "Hm.", "content": "Hello."},
        ]
    }


def test_a_response_after_calls_of_tools() -> None:
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    given = [
        {"role": "user", "content": [{"type": "input_text", "text": "Where?"}]},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": '{"at": 1}'},
        {"type": "function_call", "call_id": "b", "name": "look", "arguments": '{"at": 2}'},
        {"type": "function_call_output", "call_id": "a", "output": "no"},
        {"type": "function_call_output", "call_id": "b", "output": "yes"},
    ]
    columns = columns_of(response(given, [said("At 2.")], tools=[tool, {"type": "web_search"}]))
    row = read_shape(columns)
    assert [message["role"] for message in row.messages] == [
        "user", "assistant", "tool", "tool", "assistant",
    ]  # fmt: skip
    calls = row.prompt[1]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == [{"at": 1}, {"at": 2}]
    assert row.answer == "At 2."
    assert [one["function"]["name"] for one in row.tools] == ["look"]


def test_a_message_of_anthropics_form() -> None:
    record = {
        "route": "/v1/messages",
        "request": {
            "system": [{"type": "text", "text": "Look."}],
            "messages": [
                {"role": "user", "content": "Where?"},
                {"role": "assistant", "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t", "name": "look", "input": {"at": 1}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": "yes"},
                ]},
            ],
            "tools": [{"name": "look", "input_schema": {"type": "object"}}],
        },
        "answer": {"stop_reason": "end_turn", "content": [
            {"type": "thinking", "thinking": "So at 1."}, {"type": "text", "text": "At 1."},
        ]},
    }  # fmt: skip
    row = read_shape(columns_of(record))
    assert [message["role"] for message in row.messages] == [
        "system", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert row.completion == (
        {"role": "assistant", "content": "At 1.", "reasoning_content": "So at 1."},
    )
    assert row.tools[0]["function"] == {"name": "look", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (response("Hi", [said("Hel")], status="incomplete"), "cut off"),
        (response("Hi", []), "no message"),
        (response([{"type": "file_search_call"}], [said("a")]), "an item of type"),
        (response([{"role": "user", "content": [{"type": "input_image"}]}], [said("a")]),
         "content of type input_image"),
        ({"route": "/v1/messages", "request": {"messages": []},
          "answer": {"stop_reason": "max_tokens", "content": []}}, "cut off"),
        ({"route": "/v1/messages", "request": {"messages": []},
          "answer": {"stop_reason": "end_turn", "content": []}}, "no message"),
    ],
)  # fmt: skip
def test_requests_that_make_no_row(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        columns_of(record)
