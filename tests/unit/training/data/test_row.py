from __future__ import annotations

import json
from typing import Any

import pytest

from training.data.row import Row

USER = {"role": "user", "content": "Is it on?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "ping", "arguments": {"n": 1}}}],
}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "on"}
TOOL = {"type": "function", "function": {"name": "ping", "parameters": {}}}

ROWS = [
    (Row((USER,), (YES,)), "answer", {"prompt": [USER], "completion": [YES]}),
    (
        Row((USER, CALL, RESULT), (YES,), tools=(TOOL,), untrained=(1,)),
        "answer",
        {
            "prompt": [USER, CALL, RESULT],
            "completion": [YES],
            "tools": [TOOL],
            "untrained": [1],
        },
    ),
    (
        Row((USER,), (YES,), (NO,)),
        "preference",
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    ),
    (
        Row((USER,), (NO,), label=False),
        "label",
        {"prompt": [USER], "completion": [NO], "label": False},
    ),
    (
        Row((USER,), fields={"label": "None", "id": 0}),
        "prompt",
        {"prompt": [USER], "fields": {"label": "None", "id": 0}},
    ),
    (Row(text="Once."), "text", {"text": "Once."}),
]


@pytest.mark.parametrize(("row", "kind", "value"), ROWS)
def test_each_kind_of_row_is_written_and_read(row: Row, kind: str, value: dict[str, Any]) -> None:
    assert row.kind == kind
    assert row.as_json() == value
    assert Row.from_json(json.loads(json.dumps(value)), 0) == row


@pytest.mark.parametrize(
    ("row", "messages", "answer"),
    [
        (Row((USER,), (YES,)), [USER, YES], "Yes."),
        (Row((USER,), (YES,), (NO,)), [USER, YES], "Yes."),
        (Row((USER,), (CALL,)), [USER, CALL], ""),
        (Row((USER,)), [USER], ""),
    ],
)
def test_the_conversation_ends_with_the_answer(
    row: Row, messages: list[dict[str, Any]], answer: str
) -> None:
    assert row.messages == messages
    assert row.answer == answer


def test_a_system_prompt_moves_the_untrained_turns() -> None:
    row = Row((USER, YES, USER), (NO,), untrained=(1,)).with_system("Be brief.")
    assert row.prompt[0] == {"role": "system", "content": "Be brief."}
    assert row.prompt[row.untrained[0]] == YES
    assert row.with_system("Other.") == row
    assert Row(text="Once.").with_system("Be brief.") == Row(text="Once.")


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"completion": [YES]},
        {"prompt": "Is it on?"},
        {"prompt": ["Is it on?"]},
        {"prompt": [{"content": "Is it on?"}]},
        {"prompt": [USER], "completion": [YES], "label": "yes"},
        {"text": 5},
    ],
)
def test_another_json_value_is_not_a_row(value: Any) -> None:
    with pytest.raises((ValueError, KeyError, AttributeError, TypeError)):
        Row.from_json(value, 1)
