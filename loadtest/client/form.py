"""The form that a request asks of its answer, and whether the answer has it. Pure.

A request asks for JSON by `response_format`, by vLLM's `structured_outputs` or by `text.format` of
the responses route, and for calls by its tools.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.client.answer import Answer, fields_of
from tuneline.core.environment import require
from tuneline.core.errors import ConfigError
from tuneline.core.server_words import printable

CUT = ("length", "max_tokens", "max_output_tokens")
"""Finish reasons of an answer that is not whole: its form says nothing."""
MAX_SHOWN = 80

Form = dict[str, Any]
"""Keys: `json` (whether the answer is JSON), `schema`, `choice`, `regex`, and `tools`: the schema
of the arguments by the tool's name, null for any object. `has_own_tools`: each request brings tools
of its own, which take the place of `tools`."""


def asked_form(extra_body: Mapping[str, Any], tools: list[dict[str, Any]] | None) -> Form | None:
    """Return the form that a request asks; None if it asks for any text.

    Raises:
        ConfigError: A schema or an expression cannot be read.
    """
    found: dict[str, Any] = {}
    response = fields_of(extra_body.get("response_format"))
    response = response or fields_of(fields_of(extra_body.get("text")).get("format"))
    kind = response.get("type")
    if kind in ("json_object", "json_schema"):
        found["json"] = True
        inner = fields_of(response.get("json_schema")) or response
        found["schema"] = inner.get("schema")
    outputs = fields_of(extra_body.get("structured_outputs"))
    if (schema := outputs.get("json")) is not None:
        found |= {"json": True, "schema": schema}
    for key in ("choice", "regex"):
        if outputs.get(key) is not None:
            found[key] = outputs[key]
    if tools:
        found["tools"] = schemas_of(tools)
    elif extra_body.get("tool_choice", "none") not in ("none", {"type": "none"}):
        found["has_own_tools"] = True
    if found.get("schema") is not None:
        _validator(json.dumps(found["schema"]), "extra_body: the schema of the answers")
    for name, schema in found.get("tools", {}).items():
        if schema is not None:
            _validator(json.dumps(schema), f"workload.tools: the parameters of {name}")
    try:
        re.compile(found.get("regex", ""))
    except (re.error, TypeError) as error:
        raise ConfigError(
            f"loadtest.extra_body: the expression {found['regex']!r} cannot be read: {error}"
        ) from None
    return found or None


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the schema of the arguments by the tool's name, of tools in the form of any route."""
    inner = [fields_of(tool.get("function")) or tool for tool in tools]
    return {str(one.get("name")): one.get("parameters") or one.get("input_schema") for one in inner}


def is_whole(answer: Answer) -> bool:
    """Return whether an answer has a form to judge: it succeeded, and no limit cut it."""
    return answer.error is None and answer.finish_reason not in CUT


def form_problem(form: Form, answer: Answer) -> tuple[str, str] | None:
    """Return the class of failure and the words for a whole answer without its form."""
    problem = _calls_problem(form, answer)
    if problem is not None:
        return "malformed_call", problem
    if answer.calls or (problem := _text_problem(form, answer.content)) is None:
        return None
    return "malformed_answer", problem


def _calls_problem(form: Form, answer: Answer) -> str | None:
    if answer.finish_reason in ("tool_calls", "tool_use") and not answer.calls:
        return f"the finish reason is {answer.finish_reason}; the answer holds no call"
    for name, arguments in answer.calls:
        if name not in form.get("tools", {}):
            return f"a call of {_short(name)!r}; no tool of the request has that name"
        try:
            found = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            return f"{name}: the arguments are not JSON: {error}: {_short(arguments)!r}"
        if not isinstance(found, dict):
            return f"{name}: the arguments are {_short(arguments)!r}; expected an object"
        if (problem := _schema_problem(form["tools"][name], found)) is not None:
            return f"{name}: the arguments are not as their schema asks: {problem}"
    return None


def _text_problem(form: Form, content: str) -> str | None:
    if "choice" in form and content not in form["choice"]:
        return f"the answer is {_short(content)!r}; expected one of the choices"
    if "regex" in form and re.fullmatch(form["regex"], content) is None:
        return f"the answer is {_short(content)!r}; it does not match the expression"
    if not form.get("json"):
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}: {_short(content)!r}"
    if (problem := _schema_problem(form.get("schema"), found)) is not None:
        return f"against the schema {problem}"
    return None


def _schema_problem(schema: Any, found: Any) -> str | None:
    """Return where a value is not as a schema asks; None if it is, or if nothing is asked. The
    schema of a prompt's own tool may be none: the server judges that."""
    if schema is None:
        return None
    try:
        wrong = next(_validator(json.dumps(schema), "the schema").iter_errors(found), None)
    except ConfigError:
        return None
    except RecursionError:
        return "the answer is nested too deep"
    except require("referencing", "loadtest").exceptions.Unresolvable as error:
        return f"the schema itself has a reference to nothing: {_short(str(error))}"
    return wrong and f"at {printable(wrong.json_path)}: {_short(wrong.message)}"


@functools.cache
def _validator(schema: str, what: str) -> Any:
    """Return a validator of a schema as JSON text, which may be text itself.

    Args:
        what: The name of the schema, for the error.

    Raises:
        ConfigError: It is not a schema.
    """
    jsonschema = require("jsonschema", "loadtest")
    referencing = require("referencing", "loadtest")
    found = json.loads(schema)
    try:
        found = json.loads(found) if isinstance(found, str) else found
        kind = jsonschema.validators.validator_for(
            found, default=jsonschema.validators.Draft202012Validator
        )
        kind.check_schema(found)
    except (ValueError, TypeError, jsonschema.SchemaError) as error:
        words = getattr(error, "message", str(error))
        raise ConfigError(f"loadtest.{what} is not a JSON schema: {words}") from None
    # Without this registry, a reference to the web is fetched.
    return kind(found, registry=referencing.Registry())


def _short(text: str) -> str:
    return printable(text[:MAX_SHOWN])
