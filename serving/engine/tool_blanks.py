"""Blanks in the arguments of a tool call that a grammar forces.

`disable_any_whitespace` of vLLM holds for JSON schemas, and not for structural tags, which are the
grammar of `tool_choice: required`, of a named tool and of strict tools (vLLM 0.32.0). A small model
may then write blanks up to its limit of tokens. xgrammar takes a limit for each part of a tag.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

MOST_BLANKS = 1
"""In a row, between the parts of an object: models are trained on `{"team": "billing"}`. xgrammar
takes no 0."""


def register() -> None:
    """Let vLLM's setting hold for structural tags too.

    vLLM calls this in each of its processes; the engine compiles grammars.
    """
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    setattr(  # noqa: B010 (mypy: a method)
        XgrammarBackend,
        "compile_grammar",
        with_few_blanks(XgrammarBackend.compile_grammar, StructuredOutputOptions.STRUCTURAL_TAG),
    )


def with_few_blanks(compile_grammar: Callable[..., Any], tag: Any) -> Callable[..., Any]:
    """Return vLLM's method `compile_grammar`, with few blanks in structural tags.

    Args:
        compile_grammar: The method of vLLM's backend for xgrammar.
        tag: The kind of request that has a structural tag.
    """

    @functools.wraps(compile_grammar)
    def corrected(
        self: Any, request_type: Any, grammar_spec: str, *args: Any, **options: Any
    ) -> Any:
        if request_type == tag and self.disable_any_whitespace:
            grammar_spec = json.dumps(bounded(json.loads(grammar_spec)))
        return compile_grammar(self, request_type, grammar_spec, *args, **options)

    return corrected


def bounded(part: Any) -> Any:
    """Return a structural tag, or a part of it, with the limit for each JSON schema without one.

    XML styles have text between tags, whose blanks belong to the arguments.
    """
    if isinstance(part, list):
        return [bounded(one) for one in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") != "json_schema":
        return {key: bounded(value) for key, value in part.items()}
    is_free = part.get("max_whitespace_cnt") is None and part.get("style", "json") == "json"
    return {**part, "max_whitespace_cnt": MOST_BLANKS} if is_free else part
