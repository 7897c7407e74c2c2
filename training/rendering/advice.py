"""What to type for a row that a chat template cannot write: a variable, or another form of the row.

Each piece of advice is tried before it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tuneline.core.messages import Message, content_of
from tuneline.models.template import GIVEN_VARIABLES, template_variables, with_defaults

IsRendered = Callable[[Sequence[Message]], bool]
"""Says whether the chat template writes a conversation so that its last answer can be trained."""


def other_variable(
    tokenizer: Any, messages: Sequence[Message], is_rendered: IsRendered
) -> str | None:
    """Return what to type if the row can be trained with another value of a template's variable."""
    own, template = tokenizer.chat_template, tokenizer.get_chat_template()
    try:
        for name in sorted(template_variables(template) - GIVEN_VARIABLES):
            for value in (False, True):
                tokenizer.chat_template = with_defaults(template, {name: value})
                if is_rendered(messages):
                    return (
                        f"Set data.chat_template_kwargs: {{{name}: {str(value).lower()}}}. "
                        "Training, evaluation, proofs and the served model then render with it."
                    )
    finally:
        tokenizer.chat_template = own
    return None


def other_row(messages: Sequence[Message], is_rendered: IsRendered) -> str | None:
    """Return which part of a row the template does not take; None if it is another one."""
    return next((advice for advice, changed in _changes(messages) if is_rendered(changed)), None)


def _changes(messages: Sequence[Message]) -> Iterator[tuple[str, Sequence[Message]]]:
    """Return each advice with the conversation after it."""
    if messages[0]["role"] == "system":
        yield (
            "The chat template takes no system message. Write its text into the first message of "
            "the user, or leave it out; a column of its own by data.columns: {system: null}.",
            messages[1:],
        )
    if any(message.get("tool_calls") and content_of(message).strip() for message in messages):
        yield (
            "The chat template takes no text next to a tool call. Leave the text out.",
            [{**m, "content": ""} if m.get("tool_calls") else m for m in messages],
        )
    if any(len(message.get("tool_calls") or ()) > 1 for message in messages):
        yield (
            "Give each call a message of its own, with its result after it.",
            list(_with_first_calls(messages)),
        )


def _with_first_calls(messages: Sequence[Message]) -> Iterator[Message]:
    """Return messages with the first call of each, and its result."""
    before = ""
    for message in messages:
        calls = message.get("tool_calls")
        if not (message["role"] == before == "tool"):
            yield {**message, "tool_calls": calls[:1]} if calls else message
        before = message["role"]
