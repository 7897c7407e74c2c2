"""The assistant turns of a conversation as token ids: what a server gets, and what it generates.

A server renders the messages before a turn with the generation prompt, and the model generates from
there up to a stop token. A turn is trained on exactly these tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import Message
from tuneline.models.chat import (
    conversation_text,
    conversation_token_ids,
    prompt_text,
    prompt_token_ids,
)
from tuneline.models.template import GIVEN_VARIABLES, template_variables, with_defaults

OPENED_BLOCK = re.compile(r"(<\w+>)\s*$")
"""A generation prompt that leaves a block of reasoning open, such as `<think>`."""

NUM_TAG_TOKENS = 16
"""Tokens at the end of a prompt that hold such a tag, in any vocabulary."""

NO_REASONING = (
    "Give every row its reasoning, as reasoning_content of the assistant message. With an empty "
    "text the model learns to close the block at once."
)

RENDERING_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""The errors of a template on messages that it does not expect."""


@dataclass(frozen=True)
class Turn:
    """One assistant turn: the tokens up to its stop token, of which `[start:]` are generated."""

    input_ids: list[int]
    start: int


def render_turn(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    stop_ids: frozenset[int],
    where: str,
) -> Turn:
    """Return the last message of a conversation, an assistant's, as a server generates it.

    What the template puts after the stop token (a line end, in ChatML) is left off: the server
    never sees it, and a model need not learn it.

    Raises:
        ConfigError: The template renders the prompt differently with and without the answer, or
            ends the answer without a stop token.
        DataError: The template refuses the messages, or the answer holds a stop token.
    """
    try:
        prompt = prompt_token_ids(tokenizer, messages[:-1], tools)
        whole = conversation_token_ids(tokenizer, messages, tools)
        _require_parts(tokenizer, messages, tools, where)
    except RENDERING_ERRORS as error:
        raise DataError(f"{where}: the chat template refuses the row: {error}") from None
    block = _unanswered_block(tokenizer, messages[-1], prompt)
    if block is not None:
        raise ConfigError(
            f"{where}: the generation prompt of the chat template opens {block}, and the row has "
            "no reasoning_content",
            hint=_switch(tokenizer, messages, tools) or NO_REASONING,
        )
    if whole[: len(prompt)] != prompt:
        answer = _continuation(tokenizer, messages, tools, prompt)
        if answer is None:
            raise ConfigError(
                _no_prefix(tokenizer, prompt, whole, where),
                hint=_switch(tokenizer, messages, tools)
                or "Mend chat_template.jinja in the base model's folder.",
            )
        whole = prompt + answer
    answer = whole[len(prompt) :]
    stop = next((i for i, token in enumerate(answer) if token in stop_ids), None)
    if stop is None:
        raise ConfigError(
            _untrained_stop(tokenizer, answer, stop_ids, where),
            hint="If the model should stop at the token that the template writes, name it: "
            'training.eos_token: "<the token>". Otherwise mend chat_template.jinja in the base '
            "model's folder so that an answer ends with a stop token.",
        )
    rest = answer[stop + 1 :]
    if tokenizer.decode(rest).strip() and rest != _after_turn(tokenizer, messages, tools, stop_ids):
        raise DataError(
            f"{where}: the answer holds the stop token {tokenizer.decode([answer[stop]])!r} inside "
            f"its text; after it comes {_excerpt(tokenizer.decode(rest))!r}",
            hint="Remove the token from the row.",
        )
    return Turn(whole[: len(prompt) + stop + 1], len(prompt))


def _after_turn(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    stop_ids: frozenset[int],
) -> list[int]:
    """Return what the template itself writes after an answer's stop token.

    Some templates end a turn with one stop token and the conversation with another.
    """
    answered = [*messages[:-1], {"role": "assistant", "content": "x"}]
    whole = conversation_token_ids(tokenizer, answered, tools)
    stops = [i for i, token in enumerate(whole) if token in stop_ids]
    num_prompt = len(prompt_token_ids(tokenizer, messages[:-1], tools))
    stop = next((i for i in stops if i >= num_prompt), None)
    return [] if stop is None else whole[stop + 1 :]


def _unanswered_block(tokenizer: Any, message: Message, prompt: Sequence[int]) -> str | None:
    """Return the tag of the block that the generation prompt opens for a row without reasoning.

    Trained on such a row, the model would learn to close the block at once. An empty
    reasoning_content asks for that.
    """
    if "reasoning_content" in message:
        return None
    match = OPENED_BLOCK.search(tokenizer.decode(prompt[-NUM_TAG_TOKENS:]))
    return match[1] if match else None


def _continuation(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    prompt: Sequence[int],
) -> list[int] | None:
    """Return the answer's own tokens where the tokens of the whole do not begin with the prompt's.

    One of three reasons. The first characters of the answer and the last of the prompt are one
    token of the whole; the server sends the prompt's tokens, and the model generates the others.
    Or the template shows no reasoning of the past: its generation prompt opens a block, such as
    `<think>`, and its conversations have the answer only. The model generates the reasoning, the
    end of the block and the answer. Or the template drops the reasoning of an earlier call once an
    answer follows (gpt-oss); the answer itself is the same without that reasoning.

    Returns:
        None if the text of the whole does not begin with the prompt in any of these ways.
    """
    opened = prompt_text(tokenizer, messages[:-1], tools)
    whole = conversation_text(tokenizer, messages, tools)
    block = OPENED_BLOCK.search(opened)
    if whole.startswith(opened):
        text = whole[len(opened) :]
    elif block is not None and whole.startswith(opened[: block.start()]):
        answer = whole[block.start() :]
        if answer.startswith(block[1]):
            return None
        reasoning = messages[-1].get("reasoning_content", "").strip()
        text = f"{reasoning}\n</{block[1][1:]}\n\n{answer.lstrip()}"
    elif (found := _after_plain_turns(tokenizer, messages, tools)) is not None:
        text = found
    else:
        return None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Some tokenizers put a blank before a text that is not the first.
    return ids if tokenizer.decode([*prompt, *ids]) == tokenizer.decode(prompt) + text else None


def _after_plain_turns(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
) -> str | None:
    """Return the text of the answer after the earlier turns without their reasoning.

    Returns:
        None if the template renders these turns differently, too, once the answer follows.
    """
    earlier = [
        {key: value for key, value in message.items() if key != "reasoning_content"}
        for message in messages[:-1]
    ]
    try:
        opened = prompt_text(tokenizer, earlier, tools)
        whole = conversation_text(tokenizer, [*earlier, messages[-1]], tools)
    except RENDERING_ERRORS:
        return None
    return whole[len(opened) :] if whole.startswith(opened) else None


def _require_parts(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[dict[str, Any]], where: str
) -> None:
    """Check that the template writes the row's tools and the answer's calls and reasoning.

    Raises:
        ConfigError: It leaves one out.
    """
    message = messages[-1]
    reasoning = (message.get("reasoning_content") or "").strip()
    named = {"tools": tools, "tool_calls": message.get("tool_calls") or []}
    names = {key: [_name(entry) for entry in entries] for key, entries in named.items()}
    parts = [("tools", name) for name in names["tools"]]
    parts += [("tool_calls", name) for name in names["tool_calls"]]
    if not reasoning and not parts:
        return
    before = prompt_text(tokenizer, messages[:-1], tools)
    whole = conversation_text(tokenizer, messages, tools)
    for key, part in parts:
        # A call names a tool that the prompt lists, so it is looked for after the prompt.
        if part not in (before if key == "tools" else whole[_num_common(before, whole) :]):
            raise ConfigError(
                f"{where}: the chat template leaves out the row's {key}, {part!r}",
                hint="Use a base model whose chat template writes tools, or remove such rows.",
            )
    if reasoning and reasoning not in whole and not OPENED_BLOCK.search(before):
        raise ConfigError(
            f"{where}: the chat template leaves out the row's reasoning_content, "
            f"{_excerpt(reasoning)!r}",
            hint="Remove reasoning_content from the rows, or use a base model whose template "
            "writes it.",
        )


def _name(entry: dict[str, Any]) -> str:
    """Return the name of a tool or of a call, in OpenAI's JSON or bare."""
    name: str = (entry.get("function") or entry)["name"]
    return name


def _num_common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _switch(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
) -> str | None:
    """Return what to type if a variable of the template makes the prompt a prefix of the row."""
    template = tokenizer.get_chat_template()
    for name in sorted(template_variables(template) - GIVEN_VARIABLES):
        for value in (False, True):
            tried = with_defaults(template, {name: value})
            try:
                prompt = prompt_token_ids(tokenizer, messages[:-1], tools, template=tried)
                whole = conversation_token_ids(tokenizer, messages, tools, template=tried)
            except RENDERING_ERRORS:
                continue
            opens = _unanswered_block(tokenizer, messages[-1], prompt)
            if whole[: len(prompt)] == prompt and not opens:
                text = str(value).lower()
                return (
                    f"Set data.chat_template_kwargs: {{{name}: {text}}}. Training, evaluation, "
                    "proofs and the served model then render with it."
                )
    return None


def _untrained_stop(
    tokenizer: Any, answer: Sequence[int], stop_ids: frozenset[int], where: str
) -> str:
    stops = ", ".join(f"{tokenizer.decode([i])!r} ({i})" for i in sorted(stop_ids)) or "none"
    end = tokenizer.decode(answer[-8:])
    return (
        f"{where}: the chat template ends the answer with {end!r}, without a stop token of the "
        f"model (stop tokens: {stops}): a model trained on this never stops by itself"
    )


def _no_prefix(tokenizer: Any, prompt: Sequence[int], whole: Sequence[int], where: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
        min(len(prompt), len(whole)),
    )
    return (
        f"{where}: the chat template renders the prompt differently once an answer follows: "
        f"{_excerpt(tokenizer.decode(prompt[at:]))!r} becomes "
        f"{_excerpt(tokenizer.decode(whole[at:]))!r} (token {at}): the model would be trained on a "
        "prompt that no server sends"
    )


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
