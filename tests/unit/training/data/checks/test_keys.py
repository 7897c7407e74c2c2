"""Equal rows and equal prompts of conversations with tools."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.data.checks.made import checked, result_of
from training.data.checks.keys import content_key, prompt_key
from training.data.row import Row
from training.data.shapes import read_shape

USER = {"role": "user", "content": "Do it."}


def tool(name: str) -> dict[str, Any]:
    return {"name": name, "parameters": {"type": "object", "properties": {}}}


def call(name: str, *, id: str | None = None, **arguments: Any) -> dict[str, Any]:
    made = {"function": {"name": name, "arguments": arguments}}
    return made if id is None else made | {"id": id}


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def chat(*messages: dict[str, Any], tools: tuple[str, ...] = (), line: int = 1) -> Row:
    read = read_shape({"messages": list(messages), "tools": [tool(name) for name in tools]})
    return replace(read, line=line, file="rows.jsonl")


def weather(city: str, id: str | None, line: int = 1) -> Row:
    asked = {"role": "user", "content": f"Weather in {city}?"}
    result = {"role": "tool", "content": "7 degrees"} | ({"tool_call_id": id} if id else {})
    answer = {"role": "assistant", "content": "Cold."}
    return chat(asked, calling(call("w", id=id, at=city)), result, answer, tools=("w",), line=line)


def test_other_tools_make_another_prompt(tmp_path: Path) -> None:
    rows = [chat(USER, calling(call(f"f{n}")), tools=(f"f{n}",), line=n) for n in range(1, 11)]
    held = chat(USER, calling(call("g")), tools=("g",), line=1)
    found = checked(tmp_path, rows, [held], contradictions="refuse", near_leakage="refuse")
    assert len(list(found.rows(False))) == 10
    assert result_of(found, "leakage").num_rows == 0


def test_an_earlier_call_makes_another_prompt() -> None:
    arguments: list[dict[str, Any]] = [{"n": 1}, {"n": 2}, {"m": 2}]
    keys = {
        prompt_key(
            chat(USER, calling(call("f", **given)), {"role": "tool", "content": "ok"},
                 {"role": "assistant", "content": "Done."}, tools=("f",)), 0)
        for given in arguments
    }  # fmt: skip
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (chat(USER, calling(call("f")), tools=("f", "g")),
         chat(USER, calling(call("f")), tools=("g", "f"))),
        (weather("Bonn", "call_1"), weather("Bonn", "call_2")),
        (weather("Bonn", "call_1"), weather("Bonn", None)),
        (weather("BONN", "call_1"), weather("bonn", "call_1")),
        (read_shape({"prompt": "für", "completion": "a"}),
         read_shape({"prompt": "fu\u0308r", "completion": "a"})),
    ],
)  # fmt: skip
def test_the_order_of_tools_and_ids_and_case_make_no_other_prompt(first: Row, second: Row) -> None:
    assert prompt_key(first, 0) == prompt_key(second, 0)


def test_random_ids_hide_no_duplicate_and_make_no_contradiction(tmp_path: Path) -> None:
    rows = [weather(f"city {n // 2}", f"call_{n:03}", n + 1) for n in range(20)]
    ends = [chat(USER, calling(call("f", id=f"call_{n}")), tools=("f",), line=30 + n)
            for n in range(2)]  # fmt: skip
    found = checked(tmp_path, [*rows, *ends], contradictions="refuse")
    assert result_of(found, "duplicates").num_dropped == 11


def test_a_result_belongs_to_the_call_that_it_names() -> None:
    def both(*answered: str) -> Row:
        return chat(
            USER,
            calling(call("f", id="a", n=1), call("f", id="b", n=2)),
            *({"role": "tool", "content": text, "tool_call_id": name}
              for text, name in zip(("one", "two"), answered, strict=True)),
            {"role": "assistant", "content": "Done."},
            tools=("f",),
        )  # fmt: skip

    assert content_key(both("a", "b")) != content_key(both("b", "a"))
    assert content_key(both("a", "b")) == content_key(both("a", "b"))


def test_prompts_without_tools_keep_the_order_in_which_they_are_held_out() -> None:
    read = read_shape({"prompt": "What  IS it?", "completion": "It."})
    digest = hashlib.sha256(b'7\0[["user", "what is it?"]]').hexdigest()
    assert f"{prompt_key(read, 7):016x}" == digest[:16]
