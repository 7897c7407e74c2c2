"""Conversations as token ids, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneline.core.errors import ArtifactError
from tuneline.core.messages import Message


def prompt_token_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return a conversation with the generation prompt, as a server renders it."""
    ids = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [int(token) for token in ids]


def conversation_token_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return a whole conversation, the answer last, without a generation prompt."""
    ids = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False)
    return [int(token) for token in ids]


def render_prompt(tokenizer: Any, messages: Sequence[Message], folder: Path) -> list[int]:
    """Return `prompt_token_ids` by the tokenizer of a finished model.

    Raises:
        ArtifactError: The tokenizer has no chat template, or the template refuses the messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ArtifactError(f"{folder}: the tokenizer has no chat template")
    try:
        return prompt_token_ids(tokenizer, messages)
    except TemplateError as error:
        raise ArtifactError(
            f"{folder}: its chat template refuses a conversation: {error}"
        ) from None


def require_chat_template(tokenizer: Any, name: str) -> str:
    """Return the chat template that a server uses.

    Raises:
        ArtifactError: The base model has no template, or has several and no default.
    """
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError:
        raise ArtifactError(
            f"base model {name}: its tokenizer has no chat template; training and serving a chat "
            "model need one",
            hint="Try: the instruct variant of the model, or a chat_template.jinja in its folder.",
        ) from None
    return template
