"""What to type for columns that have other names than ours."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence

QUESTIONS = (
    "prompt", "question", "query", "instruction", "problem", "input", "input_text", "user", "text",
    "q", "질문", "문의내용", "문의", "입력", "내용", "본문", "質問", "問い合わせ内容", "入力",
    "问题", "输入",
)  # fmt: skip
ANSWERS = (
    "completion", "response", "answer", "output", "output_text", "assistant", "solution", "label",
    "a", "답변내용", "답변", "응답", "정답", "출력", "回答", "返信", "出力", "答案", "输出", "분류",
    "카테고리",
)  # fmt: skip
CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
OTHER_NAMES = {
    "prompt": QUESTIONS, "instruction": QUESTIONS, "input": ("context",),
    "reasoning_content": ("reasoning", "thinking", "rationale", "cot", "complex_cot"),
    "completion": ANSWERS, "output": ANSWERS,
    "messages": CHATS, "conversations": CHATS,
    "chosen": ("preferred", "accepted"), "rejected": ("dispreferred", "refused"),
}  # fmt: skip
"""Names that files give to our columns; the first that a file has is meant."""
EXPORTS = {
    ("mapping", "current_node"): (
        "ChatGPT's export: a tree of messages. Write each conversation as messages: jq -c '.[] | "
        '{messages: [.mapping[] | .message | select(. != null and (.content.parts[0] // "") != "" '
        'and (.author.role | IN("user", "assistant"))) | {role: .author.role, content: '
        ".content.parts[0]}]}' FILE > NEW.jsonl"
    ),
    ("data", "annotations"): (
        "Label Studio's full export. Export it as JSON-MIN or CSV, or name the places: --column "
        "prompt=data.text --column completion=annotations.0.result.0.value.choices.0"
    ),
    ("fields", "responses"): (
        "Argilla's records. Name the places: --column prompt=fields.NAME --column "
        "completion=responses.NAME.0.value"
    ),
    ("messages", "response"): (
        "A log of requests. Name the places: --column prompt=messages --column "
        "completion=response.choices.0.message"
    ),
    ("response.responses",): (
        "Argilla's flat records. Name the places: --column completion=response.responses.0"
    ),
    ("context", "question", "answers"): (
        "SQuAD's form. Name the places: --column instruction=question --column input=context "
        "--column output=answers.text.0"
    ),
    ("segments",): (
        "Axolotl's segments have no turns. Write prompt and completion, and let the chat template "
        "write the marks."
    ),
}
"""Columns that tell an export whose texts lie inside other values, and what to do."""
PAIRS = (
    "If the keys are prompts and their values are answers, try: jq -c 'to_entries[] | {prompt: "
    ".key, completion: .value}' FILE > NEW.jsonl. Else name the columns, by --column prompt=NAME "
    "--column completion=NAME."
)


def advise(columns: Sequence[str], absent: Sequence[str]) -> str:
    """Return what to type so that a file's columns get the names that are absent.

    Args:
        columns: The names in the file.
        absent: Our names of columns that a row lacks.
    """
    for marks, advice in EXPORTS.items():
        if set(marks) <= set(columns):
            return advice
    wanted = list(absent)
    is_answer = bool(set(absent) & {"completion", "output"})
    if is_answer and {"context", "history"} & set(columns):
        wanted = ["instruction", "output"]  # these columns are parts of Alpaca's prompt
    names = {name: _meant(columns, name) or "NAME" for name in wanted}
    for part in ("input", "reasoning_content"):
        if is_answer and part not in columns and (theirs := _meant(columns, part)):
            names[part] = theirs
    if "NAME" in names.values():
        return f"If the column has another name, name it: {name_columns(names)}."
    return f"Try: {name_columns(names)}."


def name_columns(names: Mapping[str, str]) -> str:
    """Return the key of run.yaml and the options that give a file's columns our names."""
    changed = {ours: theirs for ours, theirs in names.items() if ours != theirs}
    keys = ", ".join(f"{ours}: {_yaml(theirs)}" for ours, theirs in changed.items())
    options = " ".join(f"--column {shlex.quote(f'{o}={t}')}" for o, t in changed.items())
    return f"data.columns: {{{keys}}}, or {options}"


def _meant(columns: Sequence[str], ours: str) -> str | None:
    by_name = {column.casefold().replace(" ", ""): column for column in columns}
    return next((by_name[n] for n in OTHER_NAMES.get(ours, ()) if n in by_name), None)


def _yaml(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][\w.]*", name) else json.dumps(name, ensure_ascii=False)
