"""Messages and tools as users write them, checked and brought into one form.

Read are OpenAI's keys (with the older `function_call`), ShareGPT's `from` and `value`, and what
`datasets` makes of a list of structures: an object of lists, or a list of JSON texts. A null counts
as an absent key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.exact_json import parse_json
from training.data.problem import RowProblem, excerpt, kind_of
from tuneline.core.messages import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool",
    "function_response": "tool", "ipython": "tool",
}  # fmt: skip
"""Each name of a role, and the role. Templates know no `developer`; it is a newer `system`."""
CALLS = ("function_call", "tool_call")
REASONING = ("reasoning_content", "reasoning", "thinking")
UNTRAINED = ("weight", "train")
KNOWN = {
    "role", "from", "content", "value", "name", "tool_calls", "function_call", "tool_call_id",
    *REASONING, *UNTRAINED,
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
_PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'")


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
        message, is_trained = _read_message(turn, f"{where}[{index}]")
        if message["role"] == "assistant" and not is_trained:
            untrained.append(index)
        messages.append(message)
    return Conversation(tuple(messages), tuple(untrained))


def read_tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the tools of a row, each as `{"type": "function", "function": {...}}`.

    Raises:
        RowProblem: `tools` or `functions` is not a list of functions with names.
    """
    name = "tools" if "tools" in row else "functions"
    value = row.get(name)
    if value is None or value in ("[]", "null"):
        return ()
    tools = as_list(value, name)
    if not isinstance(tools, list):
        raise RowProblem(f"field {name!r}: expected a list of tools, found {kind_of(tools)}")
    read = []
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else tool
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowProblem(f"{name}[{index}]: expected a function with a name")
        if function is tool:  # OpenAI's newer form has the type next to the name
            function = {key: entry for key, entry in tool.items() if key != "type"}
        if isinstance(function.get("parameters"), str):  # as `datasets` writes mixed objects
            parameters = _parsed(function["parameters"], f"{name}[{index}].parameters")
            function = {**function, "parameters": parameters}
        if not isinstance(function.get("parameters"), dict | None):
            found = kind_of(function["parameters"])
            raise RowProblem(f"{name}[{index}].parameters: expected an object, found {found}")
        read.append({"type": "function", "function": function})
    return tuple(read)


def check_text(value: Any, where: str, *, may_be_empty: bool = False) -> str:
    """Return a value that is text.

    Raises:
        RowProblem: It is of another type, empty, or has half a surrogate pair.
    """
    if not isinstance(value, str):
        raise RowProblem(f"{where}: expected text, found {kind_of(value)}")
    if not may_be_empty and not value.strip():
        raise RowProblem(f"{where}: is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowProblem(
            f"{where}: character {error.start + 1} is half a surrogate pair; expected text"
        ) from None
    return value


def as_list(value: Any, where: str) -> Any:
    """Return a list that is written as JSON text, as an object of lists or as a list of texts.

    Raises:
        RowProblem: A text is not JSON.
    """
    value = _parsed(value, where)
    if isinstance(value, list):
        return [_parsed(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        lengths = {len(entries) for entries in value.values()}
        if len(lengths) == 1:
            return [
                {key: entry for key, entry in zip(value, entries, strict=True) if entry is not None}
                for entries in zip(*value.values(), strict=True)
            ]
    return value


def _parsed(value: Any, where: str) -> Any:
    """Return the list or object that a JSON text is; another value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    require_json(value, where)
    try:
        return parse_json(value)
    except RowProblem as problem:
        raise RowProblem(f"field {where!r}: {problem}") from None


def require_json(text: str, where: str) -> None:
    """Check that a text is not a list of messages in Python's notation, as pandas writes one.

    Raises:
        RowProblem: It is one.
    """
    if _PYTHON_LIST.match(text) and text.rstrip().endswith("}]"):
        raise RowProblem(
            f"field {where!r}: the list is in Python's notation; expected JSON, as json.dumps "
            "writes it"
        )


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
        raise RowProblem(f"{where}: expected an object, found {kind_of(turn)}")
    given = {key: value for key, value in turn.items() if value is not None}
    unknown = [key for key in given if key not in KNOWN and given[key] not in ([], {}, "")]
    named = given.get("role", given.get("from"))
    if unknown or named is None:
        found = ", ".join(unknown) if unknown else ", ".join(turn) or "nothing"
        raise RowProblem(f"{where}: expected role and content, found {found}")
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise RowProblem(f"{where}: role {named!r}; expected system, user, assistant or tool")
    content = given.get("content", given.get("value"))
    message: Message = {"role": role}
    if role == "assistant":
        message |= _assistant_parts(named, given, content, where)
    elif content is None:
        raise RowProblem(f"{where}: expected role and content, found {', '.join(turn)}")
    else:
        text = _joined(content, f"{where}.content")
        message["content"] = check_text(text, f"{where}.content", may_be_empty=role == "tool")
    for key in ("name", "tool_call_id"):
        if given.get(key):
            message[key] = check_text(given[key], f"{where}.{key}")
    return message, _is_trained(given, where)


def _assistant_parts(named: str, given: Mapping[str, Any], content: Any, where: str) -> Message:
    """Return the content, reasoning and calls of an assistant's message; one at least is there."""
    parts: Message = {}
    if named in CALLS:
        calls, content = content, None
    else:
        calls = given.get("tool_calls", given.get("function_call"))
    if calls:
        parts["tool_calls"] = _read_calls(calls, f"{where}.tool_calls")
    if content is not None:
        text = _joined(content, f"{where}.content")
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


def _read_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Return tool calls whose arguments are objects, as a server hands them to the template."""
    calls = as_list(value, where)
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise RowProblem(f"{where}: expected a list of calls, found {excerpt(calls)}")
    read = []
    for index, call in enumerate(calls):
        at = f"{where}[{index}]"
        function = call.get("function", call) if isinstance(call, dict) else call
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowProblem(f"{at}: expected a function with name and arguments")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments) if arguments.strip() else {}
            except RowProblem as problem:
                raise RowProblem(f"{at}.arguments: {problem}") from None
        if not isinstance(arguments, dict):
            raise RowProblem(f"{at}.arguments: expected an object, found {kind_of(arguments)}")
        made: dict[str, Any] = {"id": call["id"]} if call.get("id") else {}
        made |= {"type": "function"}
        read.append({**made, "function": {"name": function["name"], "arguments": arguments}})
    return read


def _joined(content: Any, where: str) -> Any:
    """Return the text of a list of text parts, joined by line ends as vLLM joins them."""
    if not isinstance(content, list):
        return content
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise RowProblem(f"{where}[{index}]: expected a part with text, found {kind}")
        texts.append(part["text"])
    return "\n".join(texts)


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
            raise RowProblem(
                f"{where}[{index}]: {role} {place}: roles are {_listed(roles)}; expected an "
                "optional system message, then user and assistant in turn, with a tool's results "
                "after the assistant's calls"
            )
        state = "calls" if "tool_calls" in message else role


def _listed(roles: Sequence[str]) -> str:
    return ", ".join(roles) if len(roles) <= 8 else f"{', '.join(roles[:8])}, …"
