"""The parser by which vLLM reads the tool calls that a chat template writes."""

from __future__ import annotations

from typing import Any

from tuneline.models.chat import conversation_text, prompt_text

PARSERS = {
    "<tool_call>\n{": "hermes",
    "<tool_call>\n<function=": "qwen3_coder",
    "<arg_key>": "glm45",
    "[TOOL_CALLS]": "mistral",
    "<|tool_call_start|>": "lfm2",
    "<|tool_call>call:": "gemma4",
    "<｜tool▁calls▁begin｜>": "deepseek_v3",
    "to=functions.": "openai",
    '{"name": "look", "parameters": ': "llama3_json",
}
"""A part of the text of a call, and vLLM's parser for it; the first part that is there counts."""
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
ASKED = [{"role": "user", "content": "What is there?"}]
CALL = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "I look.",
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}],
}


def tool_call_parser(tokenizer: Any) -> str | None:
    """Return vLLM's name of the parser for a template's calls; None if no parser is known.

    The template renders a call, and the text shows the form. A server without the parser answers
    400 to a request with tools.
    """
    from jinja2 import TemplateError

    try:
        before = prompt_text(tokenizer, ASKED, [TOOL])
        text = conversation_text(tokenizer, [*ASKED, CALL], [TOOL])
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return None
    # Instructions about calls come before the question.
    call = text[before.rfind(ASKED[0]["content"]) :]
    return next((parser for part, parser in PARSERS.items() if part in call), None)
