"""The parser of tool calls follows from the text that a chat template writes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.integration.training.tiny import CHATML, make_tokenizer
from tuneline.models.tool_calls import PARSERS, tool_call_parser

SHIPPED = {
    "qwen2_5": "hermes", "qwen3": "hermes", "qwen3_5_think": "qwen3_coder",
    "nemotron_3_nano": "qwen3_coder", "llama3_2": "llama3_json", "glm4moe": "glm45",
    "gptoss": "openai", "gemma4": "gemma4", "lfm2_v2": "lfm2", "gemma3": None, "phi3": None,
}  # fmt: skip
"""Templates that TRL ships, and vLLM's parser for the calls of each."""


@pytest.mark.parametrize("name", SHIPPED)
def test_the_form_of_a_call_names_its_parser(name: str) -> None:
    trl = pytest.importorskip("trl")
    text = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    tokenizer = make_tokenizer(text)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert tool_call_parser(tokenizer) == SHIPPED[name]


def test_a_template_without_calls_has_no_parser() -> None:
    assert tool_call_parser(make_tokenizer(CHATML)) is None


def test_vllm_has_every_parser() -> None:
    vllm = importlib.util.find_spec("vllm")  # its import takes seconds
    if vllm is None or vllm.origin is None:
        pytest.skip("needs vllm")
    table = Path(vllm.origin).parent / "tool_parsers" / "__init__.py"
    known = set(re.findall(r'^    "([^"]+)": \(', table.read_text("utf-8"), re.MULTILINE))
    assert len(known) > 20
    assert set(PARSERS.values()) <= known
