"""Gemini's and Vertex AI's tuning files: `contents` with parts, and `systemInstruction`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from training.data.problem import RowProblem, kind_of
from training.data.row import Row
from training.data.shapes.conversation import as_row
from training.data.shapes.turns import read_conversation
from training.data.shapes.values import as_list
from tuneline.core.messages import Message


def read_gemini(row: Mapping[str, Any]) -> Row:
    """Return the row of `{"contents": [{"role", "parts"}, ...]}`."""
    contents = as_list(row["contents"], "contents")
    if not isinstance(contents, list) or not contents:
        raise RowProblem(f"field 'contents': expected a list of turns, found {kind_of(contents)}")
    messages: list[Message] = []
    system = row.get("systemInstruction", row.get("system_instruction"))
    if system is not None:
        text = system if isinstance(system, str) else _texts(system, "systemInstruction")
        messages.append({"role": "system", "content": text})
    for index, turn in enumerate(contents):
        messages += _messages(turn, f"contents[{index}]")
    tools = {"tools": _tools(row["tools"])} if "tools" in row else {}
    return as_row(read_conversation(messages, "contents"), tools, "contents")


def _messages(turn: Any, where: str) -> list[Message]:
    """Return the messages of a turn: results of tools come before the turn's own text."""
    parts = _parts(turn, where)
    role = turn.get("role", "user")
    results: list[Message] = []
    message: Message = {"role": role}
    thoughts: list[str] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, part in enumerate(parts):
        at = f"{where}.parts[{index}]"
        call = part.get("functionCall", part.get("function_call"))
        result = part.get("functionResponse", part.get("function_response"))
        if call is not None:
            calls.append(call)
        elif isinstance(result, dict):
            text = json.dumps(result.get("response"), ensure_ascii=False)
            results.append({"role": "tool", "name": result.get("name"), "content": text})
        elif isinstance(part.get("text"), str):
            (thoughts if part.get("thought") else texts).append(part["text"])
        else:
            raise RowProblem(f"{at}: expected text or a function's call, found {', '.join(part)}")
    if texts or not results or calls:
        message |= {"content": "".join(texts)} if texts or not calls else {}
        message |= {"tool_calls": calls} if calls else {}
        message |= {"reasoning_content": "".join(thoughts)} if thoughts else {}
        return [*results, message]
    return results


def _parts(turn: Any, where: str) -> list[dict[str, Any]]:
    parts = turn.get("parts") if isinstance(turn, dict) else None
    if isinstance(parts, dict):
        parts = [parts]
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RowProblem(f"{where}: expected an object with parts, found {kind_of(turn)}")
    return parts


def _texts(turn: Any, where: str) -> str:
    parts = _parts(turn, where)
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    if len(texts) < len(parts):
        raise RowProblem(f"{where}: expected parts with text")
    return "".join(texts)


def _tools(value: Any) -> list[Any]:
    """Return the functions of `[{"functionDeclarations": [...]}]`; their types in lower case."""
    tools = as_list(value, "tools")
    if not isinstance(tools, list):
        raise RowProblem(f"field 'tools': expected a list of tools, found {kind_of(tools)}")
    names = ("functionDeclarations", "function_declarations")
    found = []
    for index, tool in enumerate(tools):
        given = tool if isinstance(tool, dict) else {}
        functions = next((given[name] for name in names if name in given), None)
        if not isinstance(functions, list):
            raise RowProblem(f"tools[{index}]: expected functionDeclarations")
        found += [_lowered(function) for function in functions]
    return found


def _lowered(schema: Any) -> Any:
    """Return a schema with JSON Schema's names of types: Gemini writes OBJECT and STRING."""
    if isinstance(schema, list):
        return [_lowered(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value.lower() if key == "type" and isinstance(value, str) else _lowered(value)
        for key, value in schema.items()
    }
