"""Answers without a letter, a digit, a reasoning or a tool call."""

from __future__ import annotations

import re
from collections.abc import Iterator

from training.config.checks import EmptyAnswersCheck
from training.data.checks.check import Check, Found
from training.data.row import Row
from tuneline.core.messages import Message, content_of

_SAYS_SOMETHING = re.compile(r"[^\W_]")


def find_empty_answers(row: Row, _config: EmptyAnswersCheck) -> Iterator[Found]:
    """Return the answers of a row that say nothing."""
    if row.text is not None:
        if not _SAYS_SOMETHING.search(row.text):
            yield Found("text", "empty", row.text)
        return
    chosen = "chosen" if row.rejected else "completion"
    for name, messages in ((chosen, row.completion), ("rejected", row.rejected)):
        if messages and not _says_something(messages[-1]):
            text = content_of(messages[-1])
            yield Found(f"{name}[{len(messages) - 1}].content", "empty", text)


def _says_something(message: Message) -> bool:
    # An emoji or a symbol is an answer; punctuation and white space are not.
    text = content_of(message)
    if _SAYS_SOMETHING.search(text) or message.get("tool_calls"):
        return True
    return any(ord(character) > 0x2190 for character in text if not character.isspace())


CHECK = Check(
    "empty_answers",
    "answers without text",
    find=find_empty_answers,
    advice="Try: data.checks.empty_answers: fix, which drops these rows.",
)
