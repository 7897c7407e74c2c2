"""Text that marks its turns as Anthropic's HH-RLHF does: `Human:` and `Assistant:`."""

from __future__ import annotations

import re

from training.data.shapes.values import check_text
from tuneline.core.messages import Message

_MARK = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
_ANSWER = re.compile(r"\s*\n\nAssistant: ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def split_marks(text: str, where: str) -> tuple[Message, ...]:
    """Return the turns of a text that marks two or more, or one after a blank line; else none.

    The mark of an answer that is still to come, at the end of a prompt, is left out.

    Raises:
        RowProblem: A turn is empty.
    """
    before, *parts = _MARK.split(text)
    is_marked = len(parts) >= 4 or (len(parts) == 2 and text.startswith("\n\n"))
    if before.strip() or not is_marked or parts[0] != "Human":
        return ()
    if parts[-2] == "Assistant" and not parts[-1].strip():
        parts = parts[:-2]
    return tuple(
        {"role": _ROLES[mark], "content": check_text(words.strip(), where)}
        for mark, words in zip(parts[::2], parts[1::2], strict=True)
    )


def marked_prompt(text: str, where: str) -> tuple[tuple[Message, ...], bool]:
    """Return the turns of a prompt, and whether marks split it; without marks, one user's turn."""
    text = check_text(text, where)
    turns = split_marks(text, where)
    return turns or ({"role": "user", "content": text},), bool(turns)


def marked_answer(text: str, where: str, *, is_marked: bool) -> Message:
    """Return an assistant's answer without its mark; the text that follows a mark is stripped."""
    text = check_text(text, where)
    mark = _ANSWER.match(text) or (_MARK.match(text) if is_marked else None)
    if mark is not None and not mark.group().strip().startswith("Human"):
        text = text[mark.end() :]
        is_marked = True
    return {
        "role": "assistant",
        "content": check_text(text.strip(), where) if is_marked else text,
    }
