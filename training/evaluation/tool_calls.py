"""Tool calls in the text of an answer, in the formats of the common chat templates.

Hermes and Qwen write `<tool_call>{"name", "arguments"}</tool_call>`, Llama 3 an object with
`parameters`, Mistral a list of objects, Qwen 3.5 `<function=NAME><parameter=KEY>`, gpt-oss a
message to `functions.NAME`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tuneline.core.messages import bare_answer

_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_CHANNEL = re.compile(
    r"([^<>]*)<\|channel\|>([^<>]*)(?:<\|constrain\|>[^<>]*)?<\|message\|>(.*?)"
    r"(?:<\|(?:end|return|call)\|>|\Z)",
    re.DOTALL,
)
_RECIPIENT = re.compile(r"to=functions\.(\S+)")
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>(.*?)(?:</parameter>|\Z)", re.DOTALL)


def without_channels(text: str) -> str:
    """Return a generated text of gpt-oss as its answer: calls as JSON, or the text of `final`.

    The text has its special tokens. Other channels hold reasoning; the recipient of a call is in
    front of the channel or behind it. A text without channels is returned as it is.
    """
    found = _CHANNEL.findall(text)
    if not found:
        return text
    calls = [
        json.dumps({"name": recipient[1], "arguments": content})
        for role, channel, content in found
        if (recipient := _RECIPIENT.search(role + " " + channel))
    ]
    finals = [content for _, channel, content in found if channel.strip() == "final"]
    return "\n".join(calls or finals[-1:])


def parse_tool_calls(text: str, tools: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return name and arguments of each call of one of `tools`, in order; reasoning has none."""
    text = bare_answer(text)
    parameters = {tool["function"]["name"]: _properties(tool["function"]) for tool in tools}
    found = [
        {
            "name": function[1],
            "arguments": {
                key: _value(value, parameters.get(function[1], {}).get(key))
                for key, value in _PARAMETER.findall(function[2])
            },
        }
        for function in _FUNCTION.finditer(text)
    ]
    return tuple(call for call in found or _json_calls(text) if call["name"] in parameters)


def read_call(name: str, arguments: str) -> dict[str, Any]:
    """Return a call of a server; arguments that are not an object stay text, and are not right."""
    return plain_call(name, arguments) or {"name": name, "arguments": arguments}


def answer_shown(text: str, calls: Sequence[dict[str, Any]]) -> str:
    """Return an answer as one text: its calls, which are the answer if there are any."""
    lines = (f"{c['name']}({json.dumps(c['arguments'], ensure_ascii=False)})" for c in calls)
    return "\n".join(lines) or bare_answer(text)


def plain_call(name: Any, arguments: Any) -> dict[str, Any] | None:
    """Return a call with its arguments as an object; None if they are not one."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return {"name": name, "arguments": arguments}


def _json_calls(text: str) -> list[dict[str, Any]]:
    decoder = json.JSONDecoder()
    found: list[dict[str, Any]] = []
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            function = value.get("function", value)
            if isinstance(function, dict):
                arguments = function.get("arguments", function.get("parameters"))
                call = plain_call(function.get("name"), arguments)
                found += [call] if call else []
        at = text.find("{", end)
    return found


def _properties(function: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of a function's parameters by name, as far as it has such."""
    schema = function.get("parameters")
    found = schema.get("properties") if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else {}


def _value(text: str, schema: Any) -> Any:
    """Return a parameter that is written without quotes: a text if its schema wants a text."""
    bare = text.strip()
    if isinstance(schema, dict) and schema.get("type") == "string":
        return bare
    try:
        return json.loads(bare)
    except (ValueError, RecursionError):
        return bare
