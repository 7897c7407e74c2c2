"""The gate `heldout` finds a prompt again that differs in white space, case or Unicode form."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tuneline.release.gates.heldout import _prompts


def prompts(folder: Path, *texts: str) -> list[bytes]:
    """Return the hashes of prompts that a dataset file holds."""
    path = folder / "rows.jsonl"
    rows = [{"prompt": [{"role": "user", "content": text}], "answer": "yes"} for text in texts]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return list(_prompts(path))


@pytest.mark.parametrize(
    "same",
    [
        ("a b", "A  B"),
        ("a b", "a\n\tb "),
        ("MÜNCHEN", "münchen"),
        ("Stra\u00dfe", "STRASSE"),
        (unicodedata.normalize("NFC", "für"), unicodedata.normalize("NFD", "für")),
        (unicodedata.normalize("NFC", "한국어"), unicodedata.normalize("NFD", "한국어")),
        ("a\u2028b", "a b"),
    ],
)
def test_equal_prompts_have_one_hash(tmp_path: Path, same: tuple[str, str]) -> None:
    first, second = prompts(tmp_path, *same)
    assert first == second


@pytest.mark.parametrize("other", [("ab", "a b"), ("a", "b"), ("für", "fur"), ("1\n2", "12")])
def test_other_prompts_have_other_hashes(tmp_path: Path, other: tuple[str, str]) -> None:
    first, second = prompts(tmp_path, *other)
    assert first != second


def test_turns_are_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    one = {"prompt": [{"role": "user", "content": "a b"}]}
    two = {"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    path.write_text(json.dumps(one) + "\n" + json.dumps(two) + "\n")
    assert len(set(_prompts(path))) == 2


def test_other_tools_make_another_prompt_and_ids_do_not(tmp_path: Path) -> None:
    def row(tool: str, id: str) -> dict[str, object]:
        call = {"id": id, "type": "function", "function": {"name": "f", "arguments": {}}}
        called = {"role": "assistant", "tool_calls": [call]}
        result = {"role": "tool", "content": "ok", "tool_call_id": id}
        tools = [{"type": "function", "function": {"name": tool}}]
        return {"prompt": [{"role": "user", "content": "a"}, called, result], "tools": tools}

    path = tmp_path / "rows.jsonl"
    rows = [row("f", "call_1"), row("f", "call_2"), row("g", "call_1")]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    first, same, other = _prompts(path)
    assert first == same != other


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


TALK = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]


@pytest.mark.parametrize(
    ("row", "num_messages"),
    [
        ({"prompt": TALK, "completion": [assistant("f")]}, [5, 1, 3]),
        ({"prompt": TALK, "completion": [assistant("f")], "untrained": [1]}, [5, 3]),
        # A call and its result are in the answer.
        ({"prompt": TALK[:1], "completion": [*TALK[1:], assistant("f")]}, [1, 3, 5]),
        ({"prompt": TALK, "completion": [assistant("f")], "label": True}, [5]),
        ({"prompt": TALK, "chosen": [assistant("f")], "rejected": [assistant("g")]}, [5]),
        ({"prompt": [assistant("hello"), *TALK], "completion": [assistant("f")]}, [6, 2, 4]),
        ({"text": "a"}, None),
    ],
)
def test_every_trained_turn_has_the_hash_of_its_prompt(
    tmp_path: Path, row: dict[str, Any], num_messages: list[int] | None
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    found = list(_prompts(path, every_turn=True))
    own = [*row.get("prompt", []), *row.get("completion", [])]
    wanted: list[object] = [{"prompt": own[:number]} for number in num_messages or ()] or [row]
    path.write_text("".join(json.dumps(one) + "\n" for one in wanted))
    assert found == list(_prompts(path))
    assert len(set(found)) == len(found) > 0
    path.write_text(json.dumps(row))
    assert list(_prompts(path)) == found[:1]
