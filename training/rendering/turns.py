"""The assistant turns of a conversation as token ids: what a server gets, and what it generates.

A server renders the messages before a turn with the generation prompt, and the model generates from
there up to a stop token. A turn is trained on exactly these tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from training.rendering.advice import other_row, other_variable
from tuneline.core.errors import ConfigError, DataError
from tuneline.core.messages import Message, content_of
from tuneline.models.chat import (
    conversation_text,
    conversation_token_ids,
    prompt_text,
    prompt_token_ids,
)

OPENED_BLOCK = re.compile(r"(<\w+>)\s*$")
"""A generation prompt that leaves a block of reasoning open, such as `<think>`."""

NUM_TAG_TOKENS = 16
"""Tokens at the end of a prompt that hold such a tag, in any vocabulary."""

NUM_LAST_TOKENS = 4
"""Tokens at the end of an answer by which it is found in a longer conversation."""

NO_REASONING = (
    "Give every row its reasoning, as reasoning_content of the assistant message. With an empty "
    "text the model learns to close the block at once."
)

NEVER_STOPS = (
    "If the model should stop at the token that the template writes, name it: "
    'training.eos_token: "<the token>". Otherwise mend chat_template.jinja in the base model\'s '
    "folder so that an answer ends with a stop token."
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

    def is_rendered(changed: Sequence[Message]) -> bool:
        try:
            _render_turn(tokenizer, changed, tools, stop_ids, where)
        except ConfigError:
            return False
        return True

    try:
        return _render_turn(tokenizer, messages, tools, stop_ids, where)
    except DataError as error:
        hint = error.hint or other_row(messages, is_rendered)
        raise DataError(error.problems, hint=hint) from None
    except ConfigError as error:
        hint = other_variable(tokenizer, messages, is_rendered)
        hint = hint or other_row(messages, is_rendered) or error.hint
        raise ConfigError(error.problems, hint=hint) from None


def _render_turn(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    stop_ids: frozenset[int],
    where: str,
) -> Turn:
    try:
        prompt = prompt_token_ids(tokenizer, messages[:-1], tools)
        block = _opened_block(tokenizer, prompt)
        if block is not None:
            messages = [*messages[:-1], _with_reasoning(messages[-1], block)]
        whole = conversation_token_ids(tokenizer, messages, tools)
        _require_parts(tokenizer, messages, tools, where)
        if block is not None and _is_unanswered(tokenizer, messages, tools, block):
            raise ConfigError(
                f"{where}: the generation prompt of the chat template opens {block}, and the row "
                "has no reasoning_content",
                hint=NO_REASONING,
            )
    except RENDERING_ERRORS as error:
        raise DataError(f"{where}: the chat template refuses the row: {error}") from None
    if whole[: len(prompt)] != prompt:
        answer = _continuation(tokenizer, messages, tools, prompt)
        if answer is None:
            raise ConfigError(
                _no_prefix(tokenizer, prompt, whole, where),
                hint="Mend chat_template.jinja in the base model's folder.",
            )
        whole = prompt + answer
    answer = whole[len(prompt) :]
    stop = next((i for i, token in enumerate(answer) if token in stop_ids), None)
    if stop is None:
        following = _next_turn(tokenizer, messages, tools, stop_ids, answer)
        if following is None:
            raise ConfigError(_untrained_stop(tokenizer, answer, stop_ids, where), hint=NEVER_STOPS)
        return Turn([*whole, following], len(prompt))
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


def _next_turn(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    stop_ids: frozenset[int],
    answer: Sequence[int],
) -> int | None:
    """Return the stop token that begins the message after an answer, as in the templates of GLM.

    Returns:
        None if no stop token follows the answer.
    """
    role = "tool" if "tool_calls" in messages[-1] else "user"
    try:
        longer = conversation_token_ids(
            tokenizer, [*messages, {"role": role, "content": "x"}], tools
        )
    except RENDERING_ERRORS:
        return None
    end = list(answer[-NUM_LAST_TOKENS:])
    following = [
        token
        for index, token in enumerate(longer)
        if token in stop_ids and end and longer[max(index - len(end), 0) : index] == end
    ]
    return following[-1] if following else None


def _opened_block(tokenizer: Any, prompt: Sequence[int]) -> str | None:
    """Return the tag of the block that a generation prompt leaves open."""
    match = OPENED_BLOCK.search(tokenizer.decode(prompt[-NUM_TAG_TOKENS:]))
    return match[1] if match else None


def _with_reasoning(message: Message, tag: str) -> Message:
    """Return a message whose content has its reasoning in front, up to `</think>`, in two parts."""
    before, end, after = content_of(message).partition(_end_of(tag))
    if "reasoning_content" in message or not end:
        return message
    reasoning = before.strip().removeprefix(tag)
    return {**message, "reasoning_content": reasoning.strip(), "content": after.lstrip()}


def _end_of(tag: str) -> str:
    return f"</{tag[1:]}"


def _is_unanswered(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[dict[str, Any]], tag: str
) -> bool:
    """Return whether an answer without reasoning would teach the model to close a block at once.

    An empty reasoning_content asks for that. A tag that the answer follows, such as `<assistant>`,
    opens no such block.
    """
    if "reasoning_content" in messages[-1]:
        return False
    opened = prompt_text(tokenizer, messages[:-1], tools)
    whole = conversation_text(tokenizer, messages, tools)
    answer = whole[len(opened) :].lstrip()
    return not whole.startswith(opened) or answer.startswith(_end_of(tag))


def _continuation(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    prompt: Sequence[int],
) -> list[int] | None:
    """Return the answer's own tokens if the tokens of the whole do not begin with the prompt's.

    One of three reasons. The first characters of the answer and the last of the prompt are one
    token of the whole; the server sends the prompt's tokens, and the model generates the others.
    Or the template shows no reasoning of the past: its generation prompt opens a block, such as
    `<think>`, and its conversations have the answer only. The model generates the reasoning, the
    end of the block and the answer. Or the template changes earlier text once an answer follows;
    see `_after_same_end`.

    Returns:
        None if the text of the whole does not begin with the prompt in any of these ways.
    """
    opened = prompt_text(tokenizer, messages[:-1], tools)
    whole = conversation_text(tokenizer, messages, tools)
    block = OPENED_BLOCK.search(opened)
    if whole.startswith(opened):
        text = whole[len(opened) :]
    elif block is not None and whole.startswith(opened[: block.start()]):
        answer, end = whole[block.start() :], _end_of(block[1])
        if answer.startswith(block[1]):
            return None
        reasoning = messages[-1].get("reasoning_content", "").strip()
        has_end = answer.startswith(end)  # DeepSeek V3.1 leaves out the reasoning only
        text = reasoning + (answer if has_end else f"\n{end}\n\n{answer.lstrip()}")
    elif (found := _after_same_end(tokenizer, messages, tools, opened, whole)) is not None:
        text = found
    else:
        return None
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Some tokenizers put a blank before a text that is not the first.
    return ids if tokenizer.decode([*prompt, *ids]) == tokenizer.decode(prompt) + text else None


def _after_same_end(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    opened: str,
    whole: str,
) -> str | None:
    """Return the answer's text if the template changes only earlier text once the answer follows.

    Mistral's template of v3 writes the system message into the last message only if that is the
    user's, and gpt-oss drops the reasoning before a call. The answer begins after the end of the
    prompt, which is looked for in the whole: from the last message on, or the generation prompt.

    Args:
        opened: The text of the prompt.
        whole: The text of the conversation with the answer.
    """
    try:
        begun = conversation_text(tokenizer, messages[:-1], tools)
    except RENDERING_ERRORS:
        return None
    if not opened.startswith(begun):
        return None
    last, message = content_of(messages[-2]).strip(), messages[-1]
    parts = [content_of(message).strip(), message.get("reasoning_content", "").strip()]
    parts += [_name(call) for call in message.get("tool_calls", [])]
    starts = [begun.rfind(last)] if last and last in begun else []
    for start in (*starts, len(begun)):
        end = opened[start:]
        at = whole.rfind(end) if end else -1
        while at >= 0:
            # An answer may hold the same text; then a part of the answer comes before it.
            text = whole[at + len(end) :]
            if all(part in text for part in parts):
                return text
            at = whole.rfind(end, 0, at)
    return None


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
    # A call names a tool that the prompt lists, so it is looked for after the prompt.
    answered = whole[_num_common(before, whole) :]
    for key, part in parts:
        if part not in (before if key == "tools" else answered):
            raise ConfigError(
                f"{where}: the chat template leaves out the row's {key}, {part!r}",
                hint="Use a base model whose chat template writes tools, or remove such rows.",
            )
    for name, number in Counter(names["tool_calls"]).items():
        # gpt-oss's template writes the first call of a message only.
        if answered.count(name) < number:
            raise ConfigError(
                f"{where}: the chat template leaves out one of the row's tool_calls, {name!r}: the "
                f"message has {number} of them",
                hint="Give each call a message of its own, with its result after it.",
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
