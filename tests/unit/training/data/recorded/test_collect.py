"""`tuneline data collect` on lines as a server writes them."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training import WantedRequests, collect_recorded, read_rows
from tuneline.core.errors import ConfigError, DataError

Write = Callable[..., Path]
Rows = list[dict[str, Any]]


def chat(
    name: str, question: Any = "2 + 2?", content: str | None = "4", *, key: str = "team",
    finish: str = "stop", time: float = 1_800_000_000.0, message: dict[str, Any] | None = None,
    **request: Any,
) -> dict[str, Any]:  # fmt: skip
    asked = [{"role": "user", "content": question}] if isinstance(question, str) else question
    own: dict[str, Any] = {
        "role": "assistant",
        "content": content,
        "tool_calls": [],
        "refusal": None,
    }
    choice = {"index": 0, "finish_reason": finish, "message": {**own, **(message or {})}}
    return {
        "id": name,
        "time": time,
        "route": "/v1/chat/completions",
        "key": key,
        "digest": "sha256:0123456789abcdef",
        "request": {"model": "tickets", "messages": asked, **request},
        "answer": {"id": f"chatcmpl-{name}", "choices": [choice]},
    }


def feedback(name: str, *, key: str = "team", **given: Any) -> dict[str, Any]:
    return {"feedback": name, "time": 1_800_000_100.0, "key": key, **given}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write one file of lines, and return its folder."""

    def written(*lines: dict[str, Any] | str) -> Path:
        folder = tmp_path / "recorded"
        folder.mkdir(exist_ok=True)
        path = folder / f"recorded-{len(list(folder.iterdir()))}.jsonl"
        texts = [one if isinstance(one, str) else json.dumps(one) + "\n" for one in lines]
        path.write_text("".join(texts), encoding="utf-8")
        return folder

    return written


def collected(folder: Path, **options: Any) -> tuple[Rows, Any]:
    out = folder.parent / "rows.jsonl"
    out.unlink(missing_ok=True)
    found = collect_recorded(folder, out, **options)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], found


def test_a_request_is_a_row_with_where_it_comes_from(write: Write) -> None:
    (row,), found = collected(write(chat("a", metadata={"task": "sum"}, temperature=0)))
    assert len(row.pop("thread")) == 16
    assert row == {
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "4"},
        ],
        "request_id": "a",
        "recorded_at": "2027-01-15T08:00:00.000Z",
        "served_model": "tickets",
        "key": "team",
        "metadata": {"task": "sum"},
    }
    assert (found.counts.num_read, found.counts.dropped) == (1, {})


def test_only_the_recorded_answer_is_trained(write: Write) -> None:
    first = [{"role": "user", "content": "2 + 2?"}]
    second = [*first, {"role": "assistant", "content": "4"}, {"role": "user", "content": "+ 1?"}]
    folder = write(chat("a", first), chat("b", second, "5"), chat("c", "Bye", "Bye!"))
    rows, _ = collected(folder)
    trained = [
        [m["content"] for m in row["messages"] if m["role"] == "assistant" and "weight" not in m]
        for row in rows
    ]
    assert trained == [["4"], ["5"], ["Bye!"]]
    # A split by it holds out whole conversations.
    conversations = [row["thread"] for row in rows]
    assert conversations[0] == conversations[1] != conversations[2]


def test_the_rows_are_read_as_training_reads_them(write: Write) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    asked = [
        {"role": "developer", "content": "Look."},
        {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
    ]
    folder = write(
        chat("a", asked, None, message={"tool_calls": [call], "reasoning": "I look."},
             finish="tool_calls", tools=tools),
    )  # fmt: skip
    collected(folder)
    (row,) = read_rows(folder.parent / "rows.jsonl")
    assert row.prompt == (
        {"role": "system", "content": "Look."},
        {"role": "user", "content": "Where?"},
    )
    (answer,) = row.completion
    assert answer["reasoning_content"] == "I look."
    assert answer["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": 1}}
    assert row.tools == tuple(tools)


def test_a_better_answer_takes_the_place_of_the_recorded_one(write: Write) -> None:
    lines = [
        chat("a", "A?", "wrong", message={"reasoning": "so it is wrong"}),
        chat("b", "B?", "bad"),
        chat("c", "C?", "good"),
        chat("d", "D?", "same"),
        chat("e", "E?", "unrated"),
        feedback("a", answer="right"),
        feedback("chatcmpl-b", label=False, comment="no"),
        feedback("c", label=True),
        feedback("d", answer="same"),
    ]
    folder = write(*lines)

    def said(**options: Any) -> list[tuple[Any, ...]]:
        rows, _ = collected(folder, **options)
        return [(row["request_id"], row["messages"][-1]) for row in rows]

    def answer(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    kept = [("a", answer("right")), ("c", answer("good")), ("d", answer("same"))]
    assert said() == [*kept, ("e", answer("unrated"))]
    assert said(wanted=WantedRequests(is_rated=True)) == kept
    _, found = collected(folder, wanted=WantedRequests(is_rated=True))
    assert found.counts.dropped == {"rated bad, without a better answer": 1, "not rated": 1}
    assert (found.num_feedback, found.num_used) == (4, 4)


def test_a_better_answer_and_the_recorded_one_are_a_pair(write: Write) -> None:
    folder = write(
        chat("a", "A?", "wrong"), chat("b", "B?", "fine"), chat("c", "C?", "fine"),
        feedback("a", answer="right"), feedback("b", label=True), feedback("c", answer="fine"),
    )  # fmt: skip
    (row,), found = collected(folder, to="preference")
    assert row["prompt"] == [{"role": "user", "content": "A?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "right"}]
    assert row["rejected"] == [{"role": "assistant", "content": "wrong"}]
    assert found.counts.dropped == {"no better answer": 2}


def test_a_rating_is_a_label(write: Write) -> None:
    folder = write(
        chat("a", "A?", "x"), chat("b", "B?", "x"), chat("c", "C?", "x"), chat("d", "D?", "x"),
        feedback("a", label=True), feedback("b", label=False), feedback("c", answer="y"),
    )  # fmt: skip
    rows, found = collected(folder, to="label")
    assert [(row["request_id"], row["label"]) for row in rows] == [
        ("a", True), ("b", False), ("c", False),
    ]  # fmt: skip
    assert all(row["completion"] == [{"role": "assistant", "content": "x"}] for row in rows)
    assert found.counts.dropped == {"not rated": 1}


def test_a_prompt_has_no_answer(write: Write) -> None:
    ((row,), _) = collected(write(chat("a")), to="prompt")
    assert row["prompt"] == [{"role": "user", "content": "2 + 2?"}]
    assert not {"messages", "completion"} & set(row)


def test_later_feedback_of_a_key_changes_the_earlier(write: Write) -> None:
    folder = write(chat("a", content="x"), feedback("a", label=True), feedback("a", label=False))
    rows, _ = collected(folder, to="label")
    assert [row["label"] for row in rows] == [False]


@pytest.mark.parametrize(
    ("lines", "used"),
    [
        # Who has another key did not get this answer.
        ([chat("a"), feedback("a", key="other", answer="evil")], 0),
        # An id that a client gave twice names no request.
        ([chat("a"), chat("a", "3 + 3?", "6"), feedback("a", answer="evil")], 0),
        ([chat("a"), chat("a", key="other"), feedback("a", answer="5")], 1),
        ([chat("a"), feedback("b", answer="evil")], 0),
    ],
    ids=["another key", "an id twice", "an id of two keys", "an unknown id"],
)
def test_feedback_counts_for_the_request_of_its_key(
    write: Write, lines: list[dict[str, Any]], used: int
) -> None:
    rows, found = collected(write(*lines))
    assert found.num_used == used
    assert not any(row["messages"][-1]["content"] == "evil" for row in rows)
    assert sum(row["messages"][-1]["content"] == "5" for row in rows) == used


def test_feedback_may_lie_in_an_earlier_file(write: Write) -> None:
    write(feedback("a", answer="5"))
    rows, _ = collected(write(chat("a")))
    assert rows[0]["messages"][-1]["content"] == "5"


COMPLETION = {**chat("x"), "route": "/v1/completions"}
SEVERAL = chat("x")
SEVERAL["answer"]["choices"] *= 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "x", "rou', "the line is not whole"),
        ("[1]\n", "the line is not whole"),
        (chat("x", finish="length"), "the answer was cut off at its limit"),
        (SEVERAL, "several answers to one request"),
        (COMPLETION, "a text completion has no turns"),
        (chat("x", content=None), "the answer has no message"),
        ({**chat("x"), "route": "/v1/other"}, "requests of /v1/other"),
        ({**chat("x"), "answer": None}, "cannot be read"),
        ({**chat("x"), "request": {"model": "m"}}, "cannot be read"),
        (chat("x", [{"role": "wizard", "content": "a"}]), "cannot be read"),
        (chat("x", [{"role": "user", "content": [{"type": "image_url"}]}]), "cannot be read"),
        (chat("x", 7), "cannot be read"),
    ],
)
def test_other_lines_are_dropped_and_counted(
    write: Write, line: dict[str, Any] | str, reason: str
) -> None:
    rows, found = collected(write(chat("a"), line))
    assert [row["request_id"] for row in rows] == ["a"]
    assert (found.counts.num_read, found.counts.dropped) == (2, {reason: 1})


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        (WantedRequests(since_s=1_800_000_000.5), ["b"]),
        (WantedRequests(model="tickets"), ["a", "b"]),
        (WantedRequests(model="tickets@0123"), ["b"]),
        (WantedRequests(model="0123456789ab"), ["a", "b"]),
        (WantedRequests(metadata={"task": "sum"}), ["a"]),
    ],
)
def test_filters(write: Write, wanted: WantedRequests, kept: list[str]) -> None:
    folder = write(
        chat("a", metadata={"task": "sum", "more": "1"}),
        chat("b", time=1_800_000_001, model="tickets@0123"),
        {**chat("c", time=1_800_000_000, model="other"), "digest": "sha256:ffff"},
    )
    rows, found = collected(folder, wanted=wanted)
    assert [row["request_id"] for row in rows] == kept
    assert sum(found.counts.dropped.values()) == 3 - len(kept)


def test_variables_of_the_template_are_named(write: Write) -> None:
    thinking: Any = {"chat_template_kwargs": {"enable_thinking": False}}
    _, found = collected(write(chat("a", **thinking), chat("b", **thinking), chat("c")))
    assert found.template_kwargs == {'{"enable_thinking": false}': 2}


def test_the_rows_are_their_owners(write: Write) -> None:
    folder = write(chat("a"))
    collected(folder)
    assert stat.S_IMODE((folder.parent / "rows.jsonl").stat().st_mode) == 0o600


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no recorded-\*\.jsonl"):
        collect_recorded(tmp_path, tmp_path / "rows.jsonl")


def test_no_row_is_an_error_with_the_reasons(write: Write) -> None:
    folder = write(chat("a", finish="length"), COMPLETION)
    out = folder.parent / "rows.jsonl"
    with pytest.raises(DataError) as raised:
        collect_recorded(folder, out)
    assert str(raised.value) == (
        f"{folder}: none of 2 requests makes a row: 1 the answer was cut off at its limit; "
        "1 a text completion has no turns"
    )
    assert [path.name for path in folder.parent.iterdir()] == ["recorded"]


def test_a_file_that_exists_stays(write: Write) -> None:
    folder = write(chat("a"))
    out = folder.parent / "rows.jsonl"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        collect_recorded(folder, out)
    assert out.read_text() == "mine"
