"""The form that a request asks of its answer, and whether the answer has it. Pure.

A request asks for JSON by `response_format`, by vLLM's `structured_outputs` or by `text.format` of
the responses route, and for calls by its tools.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from loadtest.client.answer import Answer, fields_of
from tuneline.core.environment import require
from tuneline.core.errors import ConfigError
from tuneline.core.server_words import printable

CUT = ("length", "max_tokens", "max_output_tokens")
"""Finish reasons of an answer that is not whole: its form says nothing."""
MAX_SHOWN = 80

Form = dict[str, Any]
"""Keys: `json` (whether the answer is JSON), `schema`, `choice`, `regex`, and `tools` (names)."""


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
        found["tools"] = [tool["function"]["name"] for tool in tools]
    if found.get("schema") is not None:
        _validator(json.dumps(found["schema"]))
    try:
        re.compile(found.get("regex", ""))
    except (re.error, TypeError) as error:
        raise ConfigError(
            f"loadtest.extra_body: the expression {found['regex']!r} cannot be read: {error}"
        ) from None
    return found or None


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
    if answer.finish_reason == "tool_calls" and not answer.calls:
        return "the finish reason is tool_calls; the answer holds no call"
    for name, arguments in answer.calls:
        if name not in form.get("tools", ()):
            return f"a call of {_short(name)!r}; no tool of the request has that name"
        try:
            found = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            return f"{name}: the arguments are not JSON: {error}: {_short(arguments)!r}"
        if not isinstance(found, dict):
            return f"{name}: the arguments are {_short(arguments)!r}; expected an object"
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
    if form.get("schema") is None:
        return None
    wrong = next(_validator(json.dumps(form["schema"])).iter_errors(found), None)
    if wrong is None:
        return None
    return f"against the schema at {printable(wrong.json_path)}: {_short(wrong.message)}"


@functools.cache
def _validator(schema: str) -> Any:
    """Return a validator of a schema as JSON text, which may be text itself.

    Raises:
        ConfigError: It is not a schema.
    """
    jsonschema = require("jsonschema", "loadtest")
    found = json.loads(schema)
    try:
        found = json.loads(found) if isinstance(found, str) else found
        kind = jsonschema.validators.validator_for(
            found, default=jsonschema.validators.Draft202012Validator
        )
        kind.check_schema(found)
    except (ValueError, TypeError, jsonschema.SchemaError) as error:
        words = getattr(error, "message", str(error))
        raise ConfigError(
            f"loadtest.extra_body: the schema of the answers is not a JSON schema: {words}"
        ) from None
    return kind(found)


def _short(text: str) -> str:
    return printable(text[:MAX_SHOWN])
