"""Messages as users write them, checked and brought into one form.

Read are OpenAI's keys (with the older `function_call`), ShareGPT's `from` and `value`, blocks of
content of Anthropic and LLaMA-Factory, and what `datasets` makes of a list of structures: an object
of lists, or a list of JSON texts. A null counts as an absent key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.exact_json import parse_json
from training.data.problem import RowProblem, excerpt, kind_of
from training.data.shapes.blocks import without_blocks
from training.data.shapes.calls import read_calls, read_id
from training.data.shapes.turn_advice import (
    of_text_calls,
    of_texts,
    with_role,
    with_roles,
    without_keys,
)
from training.data.shapes.values import as_list, check_text, joined_text
from tuneline.core.messages import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "usr": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "chatbot": "assistant", "ai": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool",
    "function_response": "tool", "ipython": "tool",
}  # fmt: skip
"""Each name of a role, and the role; case does not count. Templates know no `developer`; it is a
newer `system`."""
CALLS = ("function_call", "tool_call")
REASONING = ("reasoning_content", "reasoning", "thinking")
UNTRAINED = ("weight", "train", "training", "loss", "loss_scale", "loss_weight")
"""Names by which the data of OpenAI, Mistral and other trainers exclude an assistant's turn."""
NOTES = (
    "id", "timestamp", "created_at", "model", "finish_reason", "language", "tokens", "status",
    "turn_identifier", "country", "hashed_ip", "header", "redacted", "state", "toxic",
)  # fmt: skip
"""Notes of a log about a message, such as WildChat's; no chat template reads them, so they are left
out."""
KNOWN = {
    "role", "from", "content", "value", "name", "tool_calls", "function_call", "tool_call_id",
    "refusal", *REASONING, *UNTRAINED, *NOTES,
}  # fmt: skip
FOLLOWERS = {
    "start": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "calls": ("tool",),
    "tool": ("tool", "assistant"),
}
"""The roles that may follow a role. `calls` is an assistant's message with tool calls."""


_JSON_LIST = re.compile(r'\s*\[\s*\{\s*"(?:role|content|from|value)"')


@dataclass(frozen=True)
class Conversation:
    """Checked messages, and the assistant's turns that the data excludes from the loss."""

    messages: tuple[Message, ...]
    untrained: tuple[int, ...] = ()


def read_conversation(value: Any, where: str) -> Conversation:
    """Return the messages of a value, each checked, in an order that a chat can have.

    Raises:
        RowProblem: The value is not such a list.
    """
    conversation = read_turns(value, where)
    check_order(conversation.messages, where)
    return conversation


def read_turns(value: Any, where: str) -> Conversation:
    """Return the messages of a value, each checked, in any order.

    Raises:
        RowProblem: The value is not a list of messages.
    """
    turns = as_list(value, where)
    if not isinstance(turns, list) or not turns:
        raise RowProblem(f"field {where!r}: expected a list of messages, found {kind_of(turns)}")
    messages: list[Message] = []
    untrained = []
    for index, turn in enumerate(turns):
        at = f"{where}[{index}]"
        for part in without_blocks(turn, at):
            message, is_trained = _read_message(part, at)
            is_answer = message["role"] == "assistant"
            if is_answer and messages and _is_call(part) and messages[-1]["role"] == "assistant":
                if is_trained != (len(messages) - 1 not in untrained):
                    raise RowProblem(f"{at}: is trained otherwise than the call or text before it")
                calls = messages[-1].get("tool_calls", [])
                messages[-1] = {**messages[-1], "tool_calls": calls + message["tool_calls"]}
                continue
            if is_answer and not is_trained:
                untrained.append(len(messages))
            messages.append(message)
    return Conversation(tuple(messages), tuple(untrained))


def _is_call(turn: Mapping[str, Any]) -> bool:
    """Return whether a message of its own, as ms-swift has them, is one call of a turn's calls."""
    return _named(turn) in CALLS


def _named(turn: Mapping[str, Any]) -> Any:
    named = turn.get("from") if turn.get("role") is None else turn["role"]
    return named.casefold() if isinstance(named, str) else named


def as_messages(value: Any) -> Any:
    """Return the messages that a JSON text holds; any other value as it is."""
    if not isinstance(value, str) or not _JSON_LIST.match(value):
        return value
    try:
        turns = parse_json(value)
    except RowProblem:
        return value
    roles = ({"role", "content"}, {"from", "value"})
    known = all(isinstance(turn, dict) and any(r <= turn.keys() for r in roles) for turn in turns)
    return turns if known else value


def _read_message(turn: Any, where: str) -> tuple[Message, bool]:
    """Return one message in OpenAI's keys, and whether it may be trained."""
    if not isinstance(turn, dict):
        hint = of_texts(where) if isinstance(turn, str) else None
        raise RowProblem(f"{where}: expected an object, found {kind_of(turn)}", hint=hint)
    given = {key: value for key, value in turn.items() if value is not None}
    unknown = [key for key in given if key not in KNOWN and not _says_nothing(key, given)]
    named = _named(given)
    if unknown or named is None:
        found = ", ".join(unknown or turn) or "nothing"
        raise RowProblem(
            f"{where}: expected role and content, found {found}",
            hint=with_roles(turn, where) if named is None else without_keys(unknown, where),
        )
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        key = "from" if given.get("role") is None else "role"
        raise RowProblem(
            f"{where}: role {given[key]!r}; expected system, user, assistant or tool",
            hint=with_role(key, given[key], where),
        )
    content = given.get("content", given.get("value"))
    message: Message = {"role": role}
    if role == "assistant":
        message |= _assistant_parts(named, given, content, where)
    elif content is None:
        raise RowProblem(f"{where}: expected role and content, found {', '.join(turn)}")
    elif wrong := [key for key in ("tool_calls", "function_call", *REASONING) if given.get(key)]:
        raise RowProblem(f"{where}: has {wrong[0]}; expected it in an assistant's message")
    else:
        text = joined_text(content, f"{where}.content")
        may_be_empty = role in ("tool", "system")  # an empty system message has tokens, too
        message["content"] = check_text(text, f"{where}.content", may_be_empty=may_be_empty)
    if given.get("name"):
        message["name"] = check_text(given["name"], f"{where}.name")
    if given.get("tool_call_id"):
        message["tool_call_id"] = read_id(given["tool_call_id"], f"{where}.tool_call_id")
    return message, _is_trained(given, where)


def _assistant_parts(named: str, given: Mapping[str, Any], content: Any, where: str) -> Message:
    """Return the content, reasoning and calls of an assistant's message; one at least is there."""
    parts: Message = {}
    if named in CALLS:
        calls, content = content, None
    else:
        calls = given.get("tool_calls") or given.get("function_call")
        if not content and given.get("refusal"):  # OpenAI has the words of a refusal here
            content = given["refusal"]
    # A list without a call may be JSON text.
    if calls := read_calls(calls, f"{where}.tool_calls") if calls else []:
        parts["tool_calls"] = calls
    if content is not None:
        text = joined_text(content, f"{where}.content")
        parts["content"] = check_text(text, f"{where}.content", may_be_empty=bool(calls))
    elif not calls:
        raise RowProblem(f"{where}: expected role and content, found {', '.join(given)}")
    thoughts = [
        check_text(given[key], f"{where}.{key}", may_be_empty=True)
        for key in REASONING
        if key in given
    ]
    if thoughts:  # an empty text is a choice: the model learns not to reason
        parts["reasoning_content"] = next((text for text in thoughts if text.strip()), "")
    return parts


def _says_nothing(key: str, message: Mapping[str, Any]) -> bool:
    """Return whether an unknown key of a message may be left out: it has no content of its own."""
    if key == "reasoning_details":  # OpenRouter's second form of the reasoning
        return any(message.get(name) for name in REASONING)
    if key == "prefix":  # Mistral's API: the text is to be continued
        return message[key] is False
    return message[key] in ([], {}, "") or (key == "type" and message[key] == "message")


def _is_trained(given: Mapping[str, Any], where: str) -> bool:
    for key in UNTRAINED:
        if key in given:
            if given[key] not in (0, 1):
                raise RowProblem(f"{where}.{key}: expected 0 or 1, found {excerpt(given[key])}")
            return bool(given[key])
    return True


def check_order(messages: Sequence[Message], where: str) -> None:
    """Check that roles follow one another as in a chat.

    Raises:
        RowProblem: A message has a place where no chat template expects its role.
    """
    roles = [message["role"] for message in messages]
    state = "start"
    for index, message in enumerate(messages[roles[0] == "system" :], start=roles[0] == "system"):
        role = message["role"]
        if role not in FOLLOWERS[state]:
            place = "at the start" if state == "start" else f"after {roles[index - 1]}"
            is_result = role == "tool" and messages[index - 1]["role"] == "assistant"
            raise RowProblem(
                f"{where}[{index}]: {role} {place}: roles are {_listed(roles)}; expected an "
                "optional system message, then user and assistant in turn, with a tool's results "
                "after the assistant's calls",
                hint=of_text_calls(where) if is_result else None,
            )
        state = "calls" if "tool_calls" in message else role


def _listed(roles: Sequence[str]) -> str:
    return ", ".join(roles) if len(roles) <= 8 else f"{', '.join(roles[:8])}, …"
