"""Conversations as token ids, through the model's own chat template."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.messages import Message, with_call_ids
from tuneline.models.named_templates import NAMED_TEMPLATES
from tuneline.models.template import (
    TemplateSettings,
    date_formats,
    require_variables,
    template_variables,
    with_date,
    with_defaults,
    with_settings,
)

Tools = Sequence[dict[str, Any]]
"""The tools that a conversation may call, as OpenAI's JSON."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""The names by which templates read the text that an assistant thinks before its answer."""


def prompt_token_ids(
    tokenizer: Any, messages: Sequence[Message], tools: Tools = (), *, template: str | None = None
) -> list[int]:
    """Return a conversation with the generation prompt, as a server renders it.

    Args:
        template: Another template than the tokenizer's own.
    """
    return _token_ids(tokenizer, messages, tools, template, add_generation_prompt=True)


def conversation_token_ids(
    tokenizer: Any, messages: Sequence[Message], tools: Tools = (), *, template: str | None = None
) -> list[int]:
    """Return a whole conversation, the answer last, without a generation prompt."""
    return _token_ids(tokenizer, messages, tools, template, add_generation_prompt=False)


def prompt_text(
    tokenizer: Any, messages: Sequence[Message], tools: Tools = (), *, template: str | None = None
) -> str:
    """Return the text of `prompt_token_ids`."""
    text: str = _apply(
        tokenizer, messages, tools, template, add_generation_prompt=True, tokenize=False
    )
    return text


def conversation_text(tokenizer: Any, messages: Sequence[Message], tools: Tools = ()) -> str:
    """Return the text of `conversation_token_ids`."""
    text: str = _apply(
        tokenizer, messages, tools, None, add_generation_prompt=False, tokenize=False
    )
    return text


def _token_ids(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Tools,
    template: str | None,
    *,
    add_generation_prompt: bool,
) -> list[int]:
    ids = _apply(
        tokenizer, messages, tools, template,
        add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False,
    )  # fmt: skip
    return [int(token) for token in ids]


def _apply(
    tokenizer: Any, messages: Sequence[Message], tools: Tools, template: str | None, **options: Any
) -> Any:
    text = template or tokenizer.chat_template
    return tokenizer.apply_chat_template(
        [_for_template(message, str(text)) for message in with_call_ids(messages)],
        tools=[_tool_for_template(tool) for tool in tools] or None,
        chat_template=template,
        **options,
    )


def _for_template(message: Message, template: str) -> Message:
    """Return a message as vLLM hands it to a template: with a content, the reasoning by the name
    that the template reads."""
    found = message if "content" in message else {**message, "content": ""}
    if (reasoning := message.get(REASONING_KEYS[0])) is None or REASONING_KEYS[0] in template:
        return found
    return {**found, **{name: reasoning for name in REASONING_KEYS[1:] if name in template}}


def _tool_for_template(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool as vLLM hands it to a template: OpenAI's keys in one order, without others."""
    function = tool["function"]
    shown = {name: function.get(name) for name in ("name", "description", "parameters")}
    shown |= {
        name: function[name]
        for name in ("strict", "defer_loading")
        if function.get(name) is not None
    }
    return {"type": "function", "function": shown}


def render_prompt(
    tokenizer: Any, messages: Sequence[Message], folder: Path, tools: Tools = ()
) -> list[int]:
    """Return `prompt_token_ids` by the tokenizer of a finished model.

    Raises:
        ArtifactError: The tokenizer has no chat template, or the template refuses the messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ArtifactError(f"{folder}: the tokenizer has no chat template")
    try:
        return prompt_token_ids(tokenizer, messages, tools)
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
            hint="Try: the instruct variant of the model, or --set data.chat_template=alpaca.",
        ) from None
    return template


def chosen_template(tokenizer: Any, name: str, settings: TemplateSettings) -> str:
    """Return the chat template of a run: the model's own, or the named one of a model without.

    Raises:
        ArtifactError: The base model has no template, and the run names none.
        ConfigError: The run names a template, and the base model has another one.
    """
    if settings.named is None:
        return require_chat_template(tokenizer, name)
    named = NAMED_TEMPLATES[settings.named]
    own = tokenizer.chat_template
    if own is None:
        return named
    # A trained model has the named template behind lines that set variables.
    if not (isinstance(own, str) and own.endswith(named)):
        raise ConfigError(
            f"data.chat_template: {settings.named}: base model {name} has a chat template of its "
            "own, which is trained and served",
            hint="Try: remove data.chat_template.",
        )
    return own


def set_template(tokenizer: Any, name: str, settings: TemplateSettings) -> str:
    """Make a tokenizer render with a run's settings, and return the trained model's template.

    The returned template has the run's variables as defaults. It writes the run's date only if
    the run fixes one; otherwise a server writes the day of the request.

    Raises:
        ConfigError: The base model has no template, or the template reads no such variable, or no
            text.
    """
    template = chosen_template(tokenizer, name, settings)
    require_variables(template, settings.kwargs)
    tokenizer.chat_template = with_settings(template, settings)
    _require_text(tokenizer, name)
    if settings.serves_date:
        return with_settings(template, settings)
    return with_defaults(template, settings.kwargs)


def _require_text(tokenizer: Any, name: str) -> None:
    """Check that a template writes messages whose content is text; some read parts only.

    Raises:
        ConfigError: It leaves the text out, so that empty answers would be trained.
    """
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": "quartz"}, {"role": "assistant", "content": "zephyr"}]
    try:
        text = conversation_text(tokenizer, turns)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return  # each row says what the template refuses
    for turn in turns:
        if turn["content"] not in text:
            raise ConfigError(
                f"base model {name}: its chat template leaves out the text of the {turn['role']}: "
                "it reads a list of parts only",
                hint="Use a base model for text. Or let chat_template.jinja write message.content "
                "if it is a string.",
            )


def set_date(tokenizer: Any, date: datetime.date | None) -> None:
    """Make the tokenizer of a finished model write one date; None leaves today's."""
    if date is not None and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = with_date(tokenizer.chat_template, date)


def writes_date(tokenizer: Any, template: str, conversations: Iterable[Sequence[Message]]) -> bool:
    """Return whether a template renders any of the prompts differently on another day.

    An empty prompt is that of plain text, which no template renders.
    """
    if not date_formats(template):
        return False
    early, late = (with_date(template, day) for day in _TWO_DAYS)
    return any(
        prompt_text(tokenizer, messages, template=early)
        != prompt_text(tokenizer, messages, template=late)
        for messages in conversations
        if messages
    )


def date_variable(
    tokenizer: Any, template: str, messages: Sequence[Message], date: datetime.date
) -> dict[str, str]:
    """Return the variable by which a request sets the date, with its text; {} without one.

    The variable is found by rendering: with its text and on another day, the prompt is the prompt
    of `date`.
    """
    if not date_formats(template):
        return {}
    wanted = prompt_text(tokenizer, messages, template=with_date(template, date))
    other_day = with_date(template, next(day for day in _TWO_DAYS if day != date))
    if prompt_text(tokenizer, messages, template=other_day) == wanted:
        return {}
    for name in sorted(template_variables(template)):
        for text in date_formats(template):
            value = {name: date.strftime(text)}
            if prompt_text(tokenizer, messages, template=with_defaults(other_day, value)) == wanted:
                return value
    return {}


def date_facts(
    tokenizer: Any,
    template: str,
    conversations: Sequence[Sequence[Message]],
    date: datetime.date | None,
) -> dict[str, Any]:
    """Return for a manifest which day a template writes in place of today; {} if it writes none.

    Args:
        template: The template of the trained model.
        conversations: The prompts that are rendered; empty ones are not.
        date: The day that the run renders with.
    """
    conversations = [messages for messages in conversations if messages]
    if date is None or not writes_date(tokenizer, template, conversations):
        return {}
    return {
        "chat_template_date": date.isoformat(),
        "chat_template_date_variable": date_variable(tokenizer, template, conversations[0], date),
    }


_TWO_DAYS = (datetime.date(2001, 2, 3), datetime.date(2010, 11, 24))
"""Two days that differ in year, month, day of the month and day of the week."""
