"""Answers without a letter, a digit, a symbol or a tool call."""

from __future__ import annotations

from collections.abc import Iterator
from unicodedata import category

from training.config.checks import EmptyAnswersCheck
from training.data.checks.check import Check, Found
from training.data.row import Row
from tuneline.core.messages import Message, content_of

OPERATORS = tuple("/%&@#*\\")
"""Signs that Unicode counts as punctuation."""


def find_empty_answers(row: Row, _config: EmptyAnswersCheck) -> Iterator[Found]:
    """Return the answers of a row that say nothing."""
    if row.text is not None:
        if not _has_text(row.text):
            yield Found("text", "empty", row.text)
        return
    chosen = "chosen" if row.rejected else "completion"
    for name, messages in ((chosen, row.completion), ("rejected", row.rejected)):
        if messages and not _says_something(messages[-1]):
            text = content_of(messages[-1])
            yield Found(f"{name}[{len(messages) - 1}].content", "empty", text)


def _says_something(message: Message) -> bool:
    return bool(message.get("tool_calls")) or _has_text(content_of(message))


def _has_text(text: str) -> bool:
    # An emoji, a symbol such as `<` or one operator is an answer; other punctuation is not.
    return text.strip() in OPERATORS or any(category(char)[0] in "LNS" for char in text)


CHECK = Check(
    "empty_answers",
    "answers without text",
    find=find_empty_answers,
    advice="Try: data.checks.empty_answers: fix, which drops these rows.",
)
