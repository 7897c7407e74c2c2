"""Calls of tools that the row does not list, arguments that do not fit, results of no call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from training.config.checks import ToolCallsCheck
from training.data.checks.check import Check, Found
from training.data.row import Row

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
    "array": (list,), "object": (dict,), "null": (type(None),),
}  # fmt: skip


def find_tool_calls(row: Row, _config: ToolCallsCheck) -> Iterator[Found]:
    """Return the calls and results of a row that do not fit its tools or one another.

    A rejected answer is not checked: a wrong call may be why it is rejected. The calls of a row
    without tools are not compared with any.
    """
    schemas = {
        tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in row.tools
    }
    chosen = "chosen" if row.rejected else "completion"
    ids: set[str] = set()
    for name, messages in (("prompt", row.prompt), (chosen, row.completion)):
        for index, message in enumerate(messages):
            for place, call in enumerate(message.get("tool_calls", ())):
                ids |= {call["id"]} if call.get("id") else set()
                problem = _problem(call["function"], schemas) if schemas else None
                if problem:
                    yield Found(f"{name}[{index}].tool_calls[{place}]", *problem)
            answered = message.get("tool_call_id")
            if message["role"] == "tool" and ids and answered and answered not in ids:
                yield Found(f"{name}[{index}].tool_call_id", "result of no call", answered)


def _problem(
    call: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
    """Return the kind and the text of the first problem of a call; None if it fits."""
    name, arguments = call["name"], call["arguments"]
    if name not in schemas:
        return "unlisted tool", f"{name}; the row lists {', '.join(sorted(schemas))}"
    schema = schemas[name]
    required, properties = schema.get("required"), schema.get("properties")
    for key in required if isinstance(required, list) else ():
        if isinstance(key, str) and key not in arguments:
            return "missing argument", f"{name}: {key}"
    known = properties if isinstance(properties, dict) else {}
    for key, value in arguments.items():
        entry = known.get(key)
        if entry is None and schema.get("additionalProperties") is False:
            return "unknown argument", f"{name}: {key}"
        if isinstance(entry, dict) and not _fits(value, entry):
            return "argument of another type", f"{name}: {key}: {value!r}"
    return None


def _fits(value: Any, entry: Mapping[str, Any]) -> bool:
    """Return whether a value has the type and is among the values that a schema names."""
    types = entry.get("type")
    named = [one for one in (types if isinstance(types, list) else [types]) if isinstance(one, str)]
    kinds = tuple(kind for one in named for kind in _TYPES.get(one, (object,)))
    if kinds and (not isinstance(value, kinds) or _is_odd_boolean(value, named)):
        return value.is_integer() if isinstance(value, float) and "integer" in named else False
    values = entry.get("enum")
    return not isinstance(values, list) or value in values


def _is_odd_boolean(value: Any, named: list[str]) -> bool:
    """Return whether a value is a boolean that the schema takes for a number; Python does too."""
    return isinstance(value, bool) and "boolean" not in named and bool(set(named) & set(_TYPES))


CHECK = Check(
    "tool_calls",
    "calls that do not fit the row's tools",
    find=find_tool_calls,
    advice="Try: data.checks.tool_calls: fix, which drops these rows; or add the tool to tools.",
)
