"""Columns that a shape does not read, and that say something about the row all the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from training.data.problem import RowProblem, excerpt
from training.data.row import Row
from training.data.shapes.chat_text import as_messages_command, chat_text

LABELS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""Each value of a label, and what it means; text is compared in lower case."""
LABEL_NAMES = ("label", "kto_tag")
"""`label` of TRL and ms-swift, and LLaMA-Factory's name."""
DATASET_COLUMNS = {
    "prompt", "completion", "chosen", "rejected", "label", "text", "tools", "untrained", "fields",
    "query", "positives", "negatives",
}  # fmt: skip
"""The columns that `Row.as_json` writes."""
MEDIA = ("images", "videos", "audios")


def label_of(value: Any) -> bool:
    """Return what a label says: whether the answer is a good one.

    Raises:
        RowProblem: It says something else.
    """
    key = value.strip().casefold() if isinstance(value, str) else value
    if not isinstance(key, bool | str | int) or key not in LABELS:
        raise RowProblem(
            f"field 'label': expected true or false, found {excerpt(value)}. If the column has "
            "another meaning, give it another name: data.columns: {category: label}"
        )
    return LABELS[key]


def with_label(row: Row, shape: str | None) -> Row:
    """Return a row of messages or Alpaca's columns with the label that another column gives it.

    Without a label, a bad answer would be trained as a good one.

    Args:
        row: The row with its other columns.
        shape: The shape that the configuration names.

    Raises:
        RowProblem: The column may be a label or a class.
    """
    name = next((name for name in LABEL_NAMES if row.fields.get(name) is not None), None)
    if name is None or row.kind != "answer" or shape not in (None, "label"):
        return row
    value = row.fields[name]
    if shape is None and not isinstance(value, bool):
        try:
            label_of(value)
        except RowProblem:  # a class, such as "billing"
            return row
        raise RowProblem(
            f"field {name!r}: {excerpt(value)} may say whether the answer is good, or be a class",
            hint="For answers with a verdict: data.shape: label, or --shape label. Else give the "
            f"column another name: data.columns: {{category: {name}}}, or --column category={name}",
        )
    rest = {key: entry for key, entry in row.fields.items() if key != name}
    return replace(row, label=label_of(value), fields=rest)


def unpack_dataset(columns: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the columns that make a row, and its other columns.

    A file of a dataset artifact has the other columns as one object, `fields`, and lists the turns
    that are not trained in `untrained`; see `Row.as_json`.
    """
    untrained, fields = columns.get("untrained", []), columns.get("fields", {})
    is_own = not set(columns) - DATASET_COLUMNS and {"untrained", "fields"} & set(columns)
    prompt = columns.get("prompt", [])
    if not (is_own and isinstance(untrained, list) and isinstance(fields, dict)) or not (
        isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt)
    ):
        return columns, {}
    rest = {name: value for name, value in columns.items() if name not in ("untrained", "fields")}
    if "prompt" in rest:
        rest["prompt"] = [
            {**message, "weight": 0} if place in untrained else message
            for place, message in enumerate(prompt)
        ]
    return rest, fields


def check_fields(row: Row, shape: str | None) -> None:
    """Check that no column is left out without which the row means something else.

    Raises:
        RowProblem: A column has media, a second answer, tools of another form or variables of the
            chat template, or a text is a chat.
    """
    given = {name: value for name, value in row.fields.items() if value not in (None, "", [], {})}
    if media := next((name for name in MEDIA if name in given), None):
        raise RowProblem(
            f"field {media!r}: has media, and only text is trained",
            hint=f"Train the text only: data.columns: {{{media}: null}}, or --column {media}=",
        )
    if "chat_template_kwargs" in given:
        raise RowProblem(
            "field 'chat_template_kwargs': rows have no variables of their own; a run has them",
            hint="Set data.chat_template_kwargs in run.yaml, and leave the column out: "
            "data.columns: {chat_template_kwargs: null}, or --column chat_template_kwargs=",
        )
    if row.kind == "answer" and "rejected_messages" in given and shape is None:
        raise RowProblem(
            "field 'rejected_messages': is a second answer, and the row would be trained without",
            hint="Try: data.columns: {chosen: messages, rejected: rejected_messages}, or --column "
            "chosen=messages --column rejected=rejected_messages",
        )
    if "toolConfig" in given:
        raise RowProblem(
            "field 'toolConfig': tools of Bedrock are not read; expected tools as OpenAI has them",
            hint="Name the list as tools: jq -c '.tools = [.toolConfig.tools[].toolSpec | "
            "{name, description, parameters: .inputSchema.json}] | del(.toolConfig)' FILE > "
            "NEW.jsonl",
        )
    if row.kind == "text" and shape is None and (chat := chat_text(row.text or "")):
        raise RowProblem(
            f"field 'text': has the marks of a chat, {' and '.join(chat.marks)}; as plain text it "
            "would be trained without the model's chat template",
            hint=f"Take it apart: {as_messages_command(chat)}\n  To train the text as it is: "
            "data.shape: text, or --shape text",
            is_of_file=True,
        )
    if row.kind == "text" and shape is None and "role" in given:
        raise RowProblem(
            "columns 'text' and 'role': a row is one message; expected a whole conversation",
            hint="Join the rows of a conversation into messages, or set data.shape: text.",
        )
