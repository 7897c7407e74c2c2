"""What to type for columns that have other names than ours."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence

QUESTIONS = (
    "prompt", "question", "query", "instruction", "problem", "input", "input_text", "user", "text",
    "q", "질문", "문의내용", "문의", "입력", "내용", "본문", "質問", "問い合わせ内容", "入力",
    "问题", "输入", "src", "source",
)  # fmt: skip
CLASSES = (
    "label", "label_text", "category", "class", "intent", "sentiment", "emotion", "target", "tgt",
    "분류", "카테고리", "라벨", "カテゴリ", "ラベル", "类别", "标签",
)  # fmt: skip
"""Columns that say what a text is."""
ANSWERS = (
    "completion", "response", "answer", "output", "output_text", "assistant", "solution", "a",
    "answerkey", "답변내용", "답변", "응답", "정답", "출력", "回答", "返信", "出力", "答案",
    "输出", *CLASSES,
)  # fmt: skip
CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
OTHER_NAMES = {
    "prompt": QUESTIONS, "instruction": QUESTIONS, "input": ("context",),
    "reasoning_content": ("reasoning", "thinking", "rationale", "cot", "complex_cot"),
    "completion": ANSWERS, "output": ANSWERS,
    "messages": CHATS, "conversations": CHATS,
    "chosen": ("preferred", "accepted", "chosen_messages"),
    "rejected": ("dispreferred", "refused", "rejected_messages"),
}  # fmt: skip
"""Names that files give to our columns; the first that a file has is meant."""
# Columns with the choices of a question: of MMLU and ARC, JCommonsenseQA, KMMLU and C-Eval.
_CHOICE = re.compile(r"choices|options|(?:choice|option)_?[\da-e]|[A-E]")
_VALUE = re.compile(r"-?\d+(?:\.\d+)?|\{.*\}|\[.*\]")
LONGEST_NAME = 100
EACH_ROW = '(if type == "array" then .[] else . end)'
"""jq's filter from a JSON file to its rows."""
EXPORTS = {
    ("mapping", "current_node"): (
        "ChatGPT's export: a tree of messages. Write each conversation as messages: jq -c '.[] | "
        '{messages: [.mapping[] | .message | select(. != null and (.content.parts[0] // "") != "" '
        'and (.author.role | IN("user", "assistant"))) | {role: .author.role, content: '
        ".content.parts[0]}]}' FILE > NEW.jsonl"
    ),
    ("data", "annotations"): (
        "Label Studio's full export. Export it as JSON-MIN or CSV, or name the places: --column "
        "prompt=data.text --column completion=annotations.0.result.0.value.choices.0; texts that "
        "were typed in are at annotations.0.result.0.value.text.0"
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
    ("paragraphs",): (
        "SQuAD's articles. Write a row for each question: jq -c '.data[].paragraphs[] | .context "
        "as $text | .qas[] | select(.answers != []) | {instruction: .question, input: $text, "
        "output: .answers[0].text}' FILE > NEW.jsonl"
    ),
    ("train", "test"): (
        "An object of splits. Write each into a file: jq -c '.train[]' FILE > train.jsonl; of rows "
        "that are lists: jq -c '.train[] | {prompt: .[0], completion: .[1]}' FILE > train.jsonl"
    ),
    ("query", "answers", "tools"): (
        "xLAM's calls. Write them as calls: jq -c '"
        + EACH_ROW
        + """ | {messages: [{role: "user", content: .query}, {role: "assistant", tool_calls: """
        "(.answers | fromjson)}], tools: (.tools | fromjson | map(.parameters |= {type: "
        """"object", properties: .}))}' FILE > NEW.jsonl"""
    ),
    ("intents",): (
        "Intents with patterns. Write a row for each pattern: jq -c '.intents[] | .responses[0] as "
        "$answer | .patterns[] | {prompt: ., completion: $answer}' FILE > NEW.jsonl; for the class "
        "of a message, .tag in place of .responses[0]"
    ),
    ("custom_id", "body"): (
        "Requests of OpenAI's batches. Join them with the answers: jq -c -s 'group_by(.custom_id)"
        "[] | add | {prompt: .body.messages, completion: .response.body.choices[0].message}' FILE "
        "ANSWERS > NEW.jsonl"
    ),
    ("custom_id", "response"): (
        "Answers of OpenAI's batches. Join them with the requests: jq -c -s 'group_by(.custom_id)"
        "[] | add | {prompt: .body.messages, completion: .response.body.choices[0].message}' "
        "REQUESTS FILE > NEW.jsonl"
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
    choices = [column for column in columns if _CHOICE.fullmatch(column)]
    if len(choices) > 1 or {"choices", "options"} & set(choices):
        return _with_choices(columns, choices)
    if any(map(_is_value, columns)) and not all(map(str.isdecimal, columns)):
        return (
            "The first line is taken for the names of the columns. If it is a row, put the names "
            "in a line before it, with the same delimiter: sed '1i prompt,completion' FILE > "
            "NEW.csv"
        )
    wanted = list(absent)
    if all(_meant(columns, side) for side in ("chosen", "rejected")):
        wanted = ["chosen", "rejected"]
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


def _is_value(name: str) -> bool:
    """Return whether the name of a column looks like the cell of a row."""
    is_sentence = name.endswith((".", "?", "!", "。", "？")) and " " in name
    return bool(_VALUE.fullmatch(name)) or len(name) > LONGEST_NAME or is_sentence


def _with_choices(columns: Sequence[str], choices: Sequence[str]) -> str:
    """Return what to type for a question whose choices lie in columns of their own."""
    question, answer = (_meant(columns, part) or "NAME" for part in ("prompt", "completion"))
    if choices[0] in ("choices", "options"):
        both = 'if type == "array" then [[range(length)], .] else [.label, .text] end'
        texts = f'(.{choices[0]} | {both} | transpose[] | "\\(.[0]). \\(.[1])")'
    else:
        texts = ", ".join(f'"{re.sub("^(choice|option)_?", "", n)}. \\(.{n})"' for n in choices)
    return (
        "The choices are in other columns than the question, and the prompt would lack them: "
        f"jq -c '{EACH_ROW} | {{prompt: ([.{question}, {texts}] "
        f'| join("\\n")), completion: (.{answer} | tostring)}}\' FILE > NEW.jsonl'
    )


def _meant(columns: Sequence[str], ours: str) -> str | None:
    by_name = {column.casefold().replace(" ", ""): column for column in columns}
    return next((by_name[n] for n in OTHER_NAMES.get(ours, ()) if n in by_name), None)


def _yaml(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][\w.]*", name) else json.dumps(name, ensure_ascii=False)
