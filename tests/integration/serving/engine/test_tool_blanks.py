"""The arguments of a forced tool call have few blanks; xgrammar itself says what it accepts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xgrammar

from serving.engine.tool_blanks import with_few_blanks

SCHEMA = {
    "type": "object",
    "properties": {
        "team": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["team", "days"], "additionalProperties": False,
}  # fmt: skip


class Backend:
    """A backend that compiles with xgrammar, as vLLM's does."""

    def __init__(self, disable_any_whitespace: bool) -> None:
        self.disable_any_whitespace = disable_any_whitespace
        words = [*(chr(code) for code in range(128)), "</s>"]
        info = xgrammar.TokenizerInfo(words, stop_token_ids=[128])
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1)

    def compile_grammar(self, _request_type: str, grammar_spec: str) -> Any:
        return self.compiler.compile_structural_tag(grammar_spec)


def accepts(text: str, *, is_bounded: bool = True, **content: Any) -> bool:
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "tag", "begin": "<call>", "end": "</call>",
            "content": {"type": "json_schema", "json_schema": SCHEMA, **content},
        },
    }  # fmt: skip
    compile_grammar = with_few_blanks(Backend.compile_grammar, "tag")
    grammar = compile_grammar(Backend(is_bounded), "tag", json.dumps(tag))
    return bool(xgrammar.GrammarMatcher(grammar).accept_string(f"<call>{text}</call>"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"team":"billing","days":[1,2]}', True),
        ('{"team": "billing", "days": [1, 2]}', True),
        ('{"team": "a   b", "days": []}', True),
        ('{\n\n"team": "billing", "days": []}', False),
        ('{"team":  "billing", "days": []}', False),
    ],
)
def test_blanks_between_the_parts_of_arguments_are_few(text: str, expected: bool) -> None:
    assert accepts(text) is expected
    assert accepts(text, is_bounded=False), "vLLM's own grammar: drop the correction if this fails"


def test_a_limit_of_the_tag_stays() -> None:
    assert accepts('{"team":   "billing", "days": []}', max_whitespace_cnt=3)


def test_the_plugin_corrects_vllm() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.structured_output.backend_types import StructuredOutputOptions
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    from serving.engine import tool_blanks

    given: list[str] = []

    def compile_grammar(_self: Any, _kind: Any, spec: str) -> None:
        given.append(spec)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(XgrammarBackend, "compile_grammar", compile_grammar)
        tool_blanks.register()
        backend: Any = Backend(disable_any_whitespace=True)
        tag = '{"type": "json_schema", "json_schema": {}}'
        for kind in (StructuredOutputOptions.STRUCTURAL_TAG, StructuredOutputOptions.JSON):
            XgrammarBackend.compile_grammar(backend, kind, tag)
    assert [json.loads(spec).get("max_whitespace_cnt") for spec in given] == [1, None]
