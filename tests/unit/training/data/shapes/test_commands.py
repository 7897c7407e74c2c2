"""Commands that an error names make rows: each is run as a user would type it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from training.config.data import SourceConfig
from training.data.rows import read_rows
from tuneline.core.errors import DataError

needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")

CHAT = [("user", "Hi,\nis it on?"), ("assistant", 'Yes: "on".\nBye.')]
BRIEF = [("system", "Be brief."), *CHAT]
LONG = [*CHAT, ("user", "Sure?"), ("assistant", "Sure.")]
HI, YES = CHAT[0][1], CHAT[1][1]

CHATS_AS_TEXT: list[tuple[str, list[tuple[str, str]]]] = [
    (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n" + HI + "<|im_end|>\n"
        "<|im_start|>assistant\n" + YES + "<|im_end|>\n",
        BRIEF,
    ),
    (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n" + HI + "<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n" + YES + "<|eot_id|>",
        CHAT,
    ),
    (
        f"<bos><start_of_turn>user\n{HI}<end_of_turn>\n<start_of_turn>model\n{YES}<end_of_turn>\n",
        CHAT,
    ),
    (f"<|system|>\nBe brief.</s>\n<|user|>\n{HI}</s>\n<|assistant|>\n{YES}</s>\n", BRIEF),
    (f"<s>[INST] {HI} [/INST] {YES} </s><s>[INST] Sure? [/INST] Sure. </s>", LONG),
    (f"### Human: {HI}### Assistant: {YES}### Human: Sure?### Assistant: Sure.", LONG),
    (f"A chat. USER: {HI} ASSISTANT: {YES}</s>USER: Sure? ASSISTANT: Sure.</s>", LONG),
    (f"USER: {HI}\n\n\nASSISTANT: {YES} <|endoftext|>\n\n\n", CHAT),
    (f"Below is an instruction.\n\n### Instruction:\n{HI}\n\n### Response:\n{YES}", CHAT),
    (f"### 질문: {HI}\n\n### 답변: {YES}\n", CHAT),
    (f"<usr> {HI}\n<bot> {YES}\n<usr> Sure?\n<bot> Sure.", LONG),
]


@needs_jq
@pytest.mark.parametrize(("text", "turns"), CHATS_AS_TEXT)
def test_text_with_the_marks_of_a_chat_is_taken_apart(
    tmp_path: Path, text: str, turns: list[tuple[str, str]]
) -> None:
    hint = _refused(tmp_path, [{"text": text}], "as plain text it would be trained without")
    command = hint.partition("\n")[0].removeprefix("Take it apart: ")
    assert _typed(tmp_path, command) == turns


def test_text_with_the_marks_of_a_chat_is_plain_text_if_asked(tmp_path: Path) -> None:
    path = _written(tmp_path, [{"text": CHATS_AS_TEXT[0][0]}])
    rows = read_rows(path, config=SourceConfig(path="FILE", shape="text"))
    assert [row.text for row in rows] == [CHATS_AS_TEXT[0][0]]


def test_text_about_a_chat_is_plain_text(tmp_path: Path) -> None:
    texts = ["A turn ends with <|im_end|>.", "[INST] opens a turn.", "### Response: to whom?"]
    rows = read_rows(_written(tmp_path, [{"text": text} for text in texts]))
    assert [row.text for row in rows] == texts


CALL = [{"name": "ping", "arguments": {"n": 1}}]
PING = {"name": "ping", "description": "p", "parameters": {"n": {"type": "int"}}}
HERMES = [("human", HI), ("gpt", "<tool_call>\n{}\n</tool_call>"), ("tool", "1"), ("gpt", YES)]
TURNS: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"conversations": [{"input": HI, "output": YES}]}, CHAT),
    ({"messages": [{"human": HI, "assistant": YES}]}, CHAT),
    ({"conversations": [HI, YES]}, CHAT),
    ({"messages": [{"role": r, "content": c, "mood": 1, "hue": 2} for r, c in CHAT]}, CHAT),
    (
        {"conversations": [{"from": r, "value": c} for r, c in HERMES]},
        [CHAT[0], ("assistant", HERMES[1][1]), ("user", "1"), CHAT[1]],
    ),
    ({"query": HI, "answers": json.dumps(CALL), "tools": json.dumps([PING])}, [CHAT[0]]),
]


@needs_jq
@pytest.mark.parametrize(("row", "turns"), TURNS)
@pytest.mark.parametrize("is_array", [False, True])
def test_conversations_of_other_forms_are_written_as_messages(
    tmp_path: Path, row: dict[str, Any], turns: list[tuple[str, str]], is_array: bool
) -> None:
    hint = _refused(tmp_path, [[row]] if is_array else [row], "expected")
    assert _typed(tmp_path, hint[hint.index("jq -c") :]) == turns


@needs_jq
def test_a_command_names_the_columns_of_the_file(tmp_path: Path) -> None:
    rows = [{"dialog": [{"input": HI, "output": YES}]}]
    columns: dict[str, str | None] = {"messages": "dialog"}
    hint = _refused(tmp_path, rows, "expected role and content", columns)
    assert _typed(tmp_path, hint[hint.index("jq -c") :], columns) == CHAT


def test_the_notes_of_a_log_of_chats_are_left_out(tmp_path: Path) -> None:
    notes = {
        "country": "Peru", "hashed_ip": "a1", "header": {"user-agent": "x"}, "redacted": False,
        "language": "English", "state": None, "timestamp": None, "toxic": False,
        "turn_identifier": 7,
    }  # fmt: skip
    turns = [{"role": role, "content": text, **notes} for role, text in CHAT]
    [row] = read_rows(_written(tmp_path, [{"messages": turns}]))
    assert [*row.prompt, *row.completion] == [{"role": r, "content": c} for r, c in CHAT]


def test_lists_in_python_s_notation_are_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "FILE.csv"
    turns = str([{"role": role, "content": text} for role, text in CHAT]).replace('"', '""')
    path.write_text(f'id,messages\n1,"{turns}"\n')
    with pytest.raises(DataError, match="Python's notation") as caught:
        read_rows(path)
    command = str(caught.value.hint).removeprefix("If the file is CSV: ")
    subprocess.run(command.replace("FILE", "FILE.csv"), shell=True, cwd=tmp_path, check=True)  # noqa: S602
    [row] = read_rows(tmp_path / "NEW.jsonl")
    assert [(m["role"], m["content"]) for m in row.messages] == CHAT


def test_tools_of_bedrock_are_not_lost_in_silence(tmp_path: Path) -> None:
    messages = [{"role": r, "content": [{"text": c}]} for r, c in CHAT]
    specification = {"name": "ping", "inputSchema": {"json": {}}}
    row = {"messages": messages, "toolConfig": {"tools": [{"toolSpec": specification}]}}
    _refused(tmp_path, [row], "tools of Bedrock are not read")
    [read] = read_rows(_written(tmp_path, [{**row, "toolConfig": {}}]))
    assert read.answer == YES


def _written(folder: Path, rows: list[Any]) -> Path:
    path = folder / "FILE"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _refused(
    folder: Path, rows: list[Any], problem: str, columns: dict[str, str | None] | None = None
) -> str:
    """Return the hint of the error for rows that cannot be read."""
    config = SourceConfig(path="FILE", columns=columns or {})
    with pytest.raises(DataError, match=problem) as caught:
        read_rows(_written(folder, rows), config=config)
    return str(caught.value.hint)


def _typed(
    folder: Path, command: str, columns: dict[str, str | None] | None = None
) -> list[tuple[str, str]]:
    """Run a command in the folder of FILE; return the turns with text of the row that it makes."""
    subprocess.run(command, shell=True, cwd=folder, check=True)  # noqa: S602
    config = SourceConfig(path="NEW.jsonl", columns=columns or {})
    [row] = read_rows(folder / "NEW.jsonl", config=config)
    if row.tools:
        assert row.completion[0]["tool_calls"] == [{"type": "function", "function": CALL[0]}]
        assert row.tools[0]["function"]["parameters"]["properties"] == PING["parameters"]
    return [(m["role"], m["content"]) for m in row.messages if "content" in m]
