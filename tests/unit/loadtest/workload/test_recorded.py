"""Chats that a server recorded, as requests of a load test."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.config import LoadTestConfig
from loadtest.workload.content import Wanted
from loadtest.workload.recorded import read
from loadtest.workload.sessions.table import READERS
from serving.middleware.recording import PREFIX, SUFFIX
from tuneline.core.config import validate_config
from tuneline.core.errors import DataError
from tuneline.core.recorded import PATTERN

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def line(time: float, content: Any = "Hi", tokens: Any = 7, **request: Any) -> dict[str, Any]:
    asked = {"model": "m", "messages": [{"role": "user", "content": content}], **request}
    usage = {"usage": {"completion_tokens": tokens}}
    return {"route": "/v1/chat/completions", "time": time, "request": asked, "answer": usage}


def read_lines(tmp_path: Path, *lines: dict[str, Any] | str) -> tuple[Any, Counter[str]]:
    folder = tmp_path / "recorded"
    folder.mkdir()
    # In two files, of which the later one may have the earlier requests.
    for number, part in enumerate((lines[::2], lines[1::2])):
        texts = [one if isinstance(one, str) else json.dumps(one) + "\n" for one in part]
        (folder / f"recorded-{number}.jsonl").write_text("".join(texts), encoding="utf-8")
    workload = {"source": "recorded", "path": str(folder)}
    config = validate_config(LoadTestConfig, {"workload": workload}, "test")
    wanted = Wanted(config.workload, [], np.random.default_rng(0), None)
    return read(wanted), wanted.left_out


def test_chats_are_sent_in_their_order_with_their_lengths_and_tools(tmp_path: Path) -> None:
    content, left_out = read_lines(
        tmp_path,
        line(1_800_000_003.5, "third", temperature=0.5),
        line(1_800_000_001.0, "first", 12, tools=TOOLS),
        line(1_800_000_002.0, "second", None),
    )
    assert content.trace_s == [1_800_000_001.0, 1_800_000_002.0, 1_800_000_003.5]
    assert [one.content[0]["content"] for one in content.prompts] == ["first", "second", "third"]
    assert [one.max_tokens for one in content.prompts] == [12, None, 7]
    assert [list(one.tools) for one in content.prompts] == [TOOLS, [], []]
    assert not left_out


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ('{"route": "/v1/ch', "lines that are not whole"),
        ({**line(1.0), "route": "/v1/messages"}, "requests of another route than chat"),
        (line(-1.0), "time is not in seconds since 1970"),
        ({**line(1.0), "request": {}}, "the line has another form"),
        ({**line(1.0), "request": {"messages": []}},
         "messages are empty, or hold half of a surrogate pair"),
        (line(1.0, "\ud83d"), "content is not text"),
        (line(1.0, tools=[{"type": "function"}]), "tools: "),
        (line(1.0, None), "content"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_again_is_counted(tmp_path: Path, other: Any, reason: str) -> None:
    content, left_out = read_lines(tmp_path, line(5.0), other)
    assert len(content.prompts) == 1
    ((found, count),) = left_out.items()
    assert count == 1
    assert found.startswith(reason) or reason in found


def test_feedback_is_no_request(tmp_path: Path) -> None:
    content, left_out = read_lines(tmp_path, line(5.0), {"feedback": "a", "label": True})
    assert (len(content.prompts), not left_out) == (1, True)


@pytest.mark.parametrize("lines", [[], [{"feedback": "a"}], ['{"rou']])
def test_a_folder_without_a_chat_is_refused(tmp_path: Path, lines: list[Any]) -> None:
    with pytest.raises(DataError, match="no line is a request of /v1/chat/completions"):
        read_lines(tmp_path, *lines)


Q1, A1, Q2, A2 = ("2 + 2?", "4", "+ 1?", "5")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def model(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def chat(
    time: float, seconds: float, messages: list[dict[str, Any]], answer: Any, **request: Any
) -> dict[str, Any]:
    """Return a line as vLLM's answers make it, with the fields of its messages that are null."""
    message = answer if isinstance(answer, dict) else {**model(answer), "tool_calls": None}
    return {
        "route": "/v1/chat/completions", "time": time, "seconds": seconds,
        "request": {"model": "m", "messages": messages, **request},
        "answer": {"choices": [{"message": message}], "usage": {"completion_tokens": 3}},
    }  # fmt: skip


def conversations(tmp_path: Path, *lines: dict[str, Any]) -> tuple[Any, Counter[str]]:
    path = tmp_path / "recorded.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    workload = {"source": "recorded", "path": str(path), "sessions": {"think_s": "recorded"}}
    config = validate_config(LoadTestConfig, {"workload": workload}, "test")
    wanted = Wanted(config.workload, [], np.random.default_rng(0), None)
    return READERS["recorded"](wanted), wanted.left_out


def test_chats_that_continue_one_another_are_a_conversation(tmp_path: Path) -> None:
    begun = [user(Q1), model(A1)]
    found, left_out = conversations(
        tmp_path,
        chat(100.0, 2.0, [user(Q1)], A1),
        chat(101.0, 1.0, [user("Hi")], "Hello"),
        chat(105.5, 1.0, [*begun, user(Q2)], A2),
        chat(110.0, 1.0, [*begun, user(Q2), model(A2), user("Thanks")], "!"),
    )
    assert not left_out
    assert [(one.start_s, len(one.turns)) for one in found] == [(100.0, 3), (101.0, 1)]
    assert [(t.added, t.answers, t.delay_s, t.max_tokens) for t in found[0].turns] == [
        ([user(Q1)], [model(A1)], None, 3),
        ([user(Q2)], [model(A2)], 3.5, 3),  # 105.5 - (100 + 2)
        ([user("Thanks")], [model("!")], 3.5, 3),  # 110 - (105.5 + 1)
    ]


def test_an_answer_that_is_continued_twice_makes_two_conversations(tmp_path: Path) -> None:
    begun = [user(Q1), model(A1)]
    found, _ = conversations(
        tmp_path,
        chat(100.0, 1.0, [user(Q1)], A1),
        chat(105.0, 1.0, [*begun, user(Q2)], A2),
        chat(109.0, 1.0, [*begun, user("edited")], "6"),
        # A client that changed what the model said does not continue it.
        chat(112.0, 1.0, [user(Q1), model("four"), user(Q2)], A2),
        # Nor does one that began before the answer had ended.
        chat(113.0, 9.0, [user("slow")], "x"),
        chat(114.0, 1.0, [user("slow"), model("x"), user("?")], "y"),
    )
    assert [[len(turn.added) for turn in one.turns] for one in found] == [
        [1, 1], [3], [3], [1, 1],
    ]  # fmt: skip
    assert found[3].turns[1].delay_s == 0.0


def test_calls_of_tools_are_part_of_a_conversation(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c", "content": "yes"}
    (one,), _ = conversations(
        tmp_path,
        chat(100.0, 1.0, [user("Where?")], {**calling, "refusal": None}, tools=TOOLS),
        # Clients send the calls back without the content that is null.
        chat(102.0, 1.0, [user("Where?"), {k: v for k, v in calling.items() if k != "content"},
                          result], "There.", tools=TOOLS),
    )  # fmt: skip
    assert [turn.added for turn in one.turns] == [[user("Where?")], [result]]
    assert one.turns[0].answers == [calling]
    assert list(one.tools) == TOOLS


def test_a_chat_that_ends_with_the_assistant_is_left_out(tmp_path: Path) -> None:
    found, left_out = conversations(
        tmp_path, chat(1.0, 1.0, [user(Q1)], A1), chat(2.0, 1.0, [user(Q1), model("4")], A1)
    )
    assert len(found) == 1
    assert left_out == {"the messages end with neither a user nor a tool": 1}


def test_the_files_have_the_names_that_the_server_gives() -> None:
    assert f"{PREFIX}*{SUFFIX}" == PATTERN
