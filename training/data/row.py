"""One row of training data, in the form that every step after intake reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tuneline.core.messages import Message, content_of

SYSTEM_ROLES = ("system", "developer")
PARTS = ("label", "completion", "prompt", "system")
"""The parts of a row that `Row.column` knows."""

Kind = Literal["answer", "preference", "label", "prompt", "text", "retrieval"]


@dataclass(frozen=True)
class Row:
    """One training example.

    Attributes:
        prompt: The conversation up to the last turn before the answer; empty for plain text.
        completion: The answer, normally one assistant message. Of a preference pair, the chosen
            answer. Of a query, a message for each passage that answers it.
        rejected: Of a preference pair, the answer that is worse. Of a query, a message for each
            passage that does not answer it.
        label: Of an answer without a pair, whether it is a good one.
        tools: The tools that the conversation may call, as OpenAI's JSON.
        text: Plain text, which has no turns.
        is_query: Whether the prompt is a query with passages: texts for an embedding model.
        untrained: Indices of assistant messages of `prompt` that the data excludes from the loss.
        fields: The other columns, as they were read.
        line: Its line or row in the file, from 1.
        file: The file's name.
        source: The place of its source in the configuration, from 0.
    """

    prompt: tuple[Message, ...] = ()
    completion: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    label: bool | None = None
    tools: tuple[dict[str, Any], ...] = ()
    text: str | None = None
    is_query: bool = False
    untrained: tuple[int, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0
    file: str = ""
    source: int = 0

    @property
    def kind(self) -> Kind:
        """Return what the row can train: each training method names the kinds that it takes."""
        if self.text is not None:
            return "text"
        if self.is_query:
            return "retrieval"
        if self.rejected:
            return "preference"
        if self.label is not None:
            return "label"
        return "answer" if self.completion else "prompt"

    @property
    def messages(self) -> list[Message]:
        """Return the whole conversation, the answer last."""
        return [*self.prompt, *self.completion]

    @property
    def answer(self) -> str:
        """Return the text of the last message of the answer; empty if there is none."""
        return content_of(self.completion[-1]) if self.completion else ""

    @property
    def query(self) -> str:
        """Return the text of a query."""
        return content_of(self.prompt[0])

    @property
    def passages(self) -> tuple[list[str], list[str]]:
        """Return the passages that answer a query, and those that do not."""
        answers, others = (
            [content_of(m) for m in side] for side in (self.completion, self.rejected)
        )
        return answers, others

    def column(self, name: str) -> Any:
        """Return the value of a column; None if the row has none.

        The columns that a shape reads are not in `fields`; `label`, `completion`, `prompt` and
        `system` name these parts of a row, whatever its shape.
        """
        if self.fields.get(name) is not None:
            return self.fields[name]
        if name == "label":
            return self.label
        if name == "completion":
            return self.answer or None
        asked = [m for m in self.prompt if (m["role"] in SYSTEM_ROLES) == (name == "system")]
        return [content_of(m) for m in asked] or None if name in ("prompt", "system") else None

    def with_system(self, prompt: str | None) -> Row:
        """Return the row with a system message in front, if it is a chat that has none."""
        has_own = bool(self.prompt) and self.prompt[0]["role"] in SYSTEM_ROLES
        if prompt is None or has_own or self.text is not None or self.is_query:
            return self
        return replace(
            self,
            prompt=({"role": "system", "content": prompt}, *self.prompt),
            untrained=tuple(index + 1 for index in self.untrained),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the row in TRL's conversational keys; absent parts have no key.

        `{"prompt", "completion"}`, with `"label"` if there is one; `{"prompt", "chosen",
        "rejected"}`; `{"prompt"}`; `{"text"}`; or `{"query", "positives", "negatives"}`. `tools`,
        `untrained` and `fields` follow if they are not empty. `fields` is one object, so that no
        column hides a key.
        """
        row: dict[str, Any] = {}
        if self.is_query:
            row["query"] = self.query
            row["positives"], row["negatives"] = self.passages
            if self.fields:
                row["fields"] = dict(self.fields)
            return row
        if self.text is not None:
            row["text"] = self.text
        else:
            row["prompt"] = list(self.prompt)
        if self.rejected:
            row |= {"chosen": list(self.completion), "rejected": list(self.rejected)}
        elif self.completion:
            row["completion"] = list(self.completion)
        if self.label is not None:
            row["label"] = self.label
        for name in ("tools", "untrained"):
            if getattr(self, name):
                row[name] = list(getattr(self, name))
        if self.fields:
            row["fields"] = dict(self.fields)
        return row

    @classmethod
    def from_json(cls, value: Any, line: int, file: str = "") -> Row:
        """Return the row that `as_json` wrote.

        Raises:
            ValueError, KeyError, AttributeError, TypeError: `value` is not such a row.
        """
        text, label = value.get("text"), value.get("label")
        if not isinstance(text, str | None) or not isinstance(label, bool | None):
            raise TypeError("expected text and a boolean label")
        if "query" in value:
            return query_row(
                value["query"], value["positives"], value["negatives"],
                fields=dict(value.get("fields", {})), line=line, file=file,
            )  # fmt: skip
        return cls(
            prompt=_messages([] if text is not None else value["prompt"]),
            completion=_messages(value.get("chosen", value.get("completion", []))),
            rejected=_messages(value.get("rejected", [])),
            label=label,
            tools=tuple(value.get("tools", [])),
            text=text,
            untrained=tuple(value.get("untrained", [])),
            fields=dict(value.get("fields", {})),
            line=line,
            file=file,
        )


def query_row(query: str, positives: Sequence[str], negatives: Sequence[str], **rest: Any) -> Row:
    """Return the row of a query with its passages.

    Args:
        rest: Other fields of the row.
    """
    if not all(isinstance(text, str) for text in (query, *positives, *negatives)):
        raise TypeError("expected texts")
    answers, others = (
        tuple({"role": "assistant", "content": text} for text in side)
        for side in (positives, negatives)
    )
    asked = ({"role": "user", "content": query},)
    return Row(prompt=asked, completion=answers, rejected=others, is_query=True, **rest)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise TypeError("expected a list of messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message["role"], str):
            raise TypeError("expected messages with a role")
    return tuple(value)
