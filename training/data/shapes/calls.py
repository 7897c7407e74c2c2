"""Tools and tool calls as users write them, in OpenAI's JSON.

Read are OpenAI's forms, old and new, and the names that Anthropic's API, MCP and Llama's prompts
give to the schema and the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.exact_json import parse_json
from training.data.problem import RowProblem, excerpt, kind_of
from training.data.shapes.values import as_list, check_text, parsed

SCHEMAS = ("input_schema", "inputSchema")
"""Names of a tool's `parameters`: Anthropic's API, and MCP."""
ARGUMENTS = ("arguments", "parameters", "args", "input")
"""Names of a call's arguments: OpenAI, Llama's prompts, Gemini and LangChain, Anthropic."""
CALL_KEYS = ("name", "type", "id", "index", "tool_call_id")


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
        schema = next((key for key in SCHEMAS if key in function), None)
        if schema is not None and "parameters" not in function:
            function = {("parameters" if k == schema else k): v for k, v in function.items()}
        if isinstance(function.get("parameters"), str):  # as `datasets` writes mixed objects
            parameters = parsed(function["parameters"], f"{name}[{index}].parameters")
            function = {**function, "parameters": parameters}
        if not isinstance(function.get("parameters"), dict | None):
            found = kind_of(function["parameters"])
            raise RowProblem(f"{name}[{index}].parameters: expected an object, found {found}")
        read.append({"type": "function", "function": function})
    return tuple(read)


def read_calls(value: Any, where: str) -> list[dict[str, Any]]:
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
        named = [key for key in ARGUMENTS if function.get(key) is not None]
        other = [key for key in function if key not in (*ARGUMENTS, *CALL_KEYS)]
        if len(named) > 1 or other:
            found = ", ".join(other or named)
            raise RowProblem(f"{at}: expected a function with name and arguments, found {found}")
        arguments = function[named[0]] if named else {}
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments) if arguments.strip() else {}
            except RowProblem as problem:
                raise RowProblem(f"{at}.arguments: {problem}") from None
        if not isinstance(arguments, dict):
            raise RowProblem(f"{at}.arguments: expected an object, found {kind_of(arguments)}")
        made: dict[str, Any] = {"id": read_id(call["id"], f"{at}.id")} if call.get("id") else {}
        made |= {"type": "function"}
        read.append({**made, "function": {"name": function["name"], "arguments": arguments}})
    return read


def read_id(value: Any, where: str) -> str:
    """Return the id of a call as text; some logs count the calls."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return check_text(str(value) if is_number else value, where)
