"""Tool calls in the text of an answer, in the formats of the common chat templates.

Hermes and Qwen write `<tool_call>{"name", "arguments"}</tool_call>`, Llama 3 an object with
`parameters`, Mistral a list of objects, Qwen 3.5 `<function=NAME><parameter=KEY>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>(.*?)(?:</parameter>|\Z)", re.DOTALL)


def parse_tool_calls(text: str, tools: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return name and arguments of each call of one of `tools`, in order."""
    names = {tool["function"]["name"] for tool in tools}
    found = [
        {
            "name": function[1],
            "arguments": {key: _value(value) for key, value in _PARAMETER.findall(function[2])},
        }
        for function in _FUNCTION.finditer(text)
    ]
    return tuple(call for call in found or _json_calls(text) if call["name"] in names)


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


def _value(text: str) -> Any:
    try:
        return json.loads(text.strip())
    except (ValueError, RecursionError):
        return text.strip()
