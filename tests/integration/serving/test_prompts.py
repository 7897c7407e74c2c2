"""The prompt that training renders is the prompt that vLLM's own code makes of the request."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from tests.integration.training.tiny import make_tokenizer
from tuneline.core.messages import Message, as_request
from tuneline.models.chat import prompt_text

CALL = {
    "type": "function",
    "function": {"name": "look", "arguments": {"city": "Oslo", "days": [1, {"to": None}]}},
}
TALK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "Sun.", "reasoning_content": "The tool says so."},
    {"role": "user", "content": "And Rome?"},
]
TOOLS = (
    # Keys in another order, one that OpenAI's API does not have, and no description.
    {"type": "function", "function": {"parameters": {"type": "object"}, "returns": "text",
                                      "name": "look"}},
    {"type": "function", "function": {"name": "ask", "description": "Ask.", "strict": True,
                                      "parameters": {}}},
)  # fmt: skip


def served_prompt(tokenizer: Any, tools: Any) -> str:
    """Return the text that vLLM hands to its tokenizer for a chat request."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers.chat_utils import parse_chat_messages

    options = {"tools": list(tools), "tool_choice": "none"} if tools else {}
    body = {"model": "m", "messages": as_request(TALK), **options}
    request = ChatCompletionRequest.model_validate_json(json.dumps(body))
    model = types.SimpleNamespace(
        enable_prompt_embeds=False, multimodal_config=None, is_multimodal_model=False,
        allowed_media_domains=None, allowed_local_media_path="",
    )  # fmt: skip
    conversation, *_ = parse_chat_messages(request.messages, model, "string")
    text: str = tokenizer.apply_chat_template(
        conversation,
        tools=[tool.model_dump() for tool in request.tools] if request.tools else None,
        add_generation_prompt=True,
        tokenize=False,
    )
    return text


@pytest.mark.parametrize("tools", [(), TOOLS])
@pytest.mark.parametrize(
    "name", ["qwen3", "llama3_1", "glm4moe", "qwen3_6", "nemotron_3_nano", "gemma4_v5", "lfm2_2_5"]
)
def test_a_prompt_with_calls_is_that_of_the_server(name: str, tools: Any) -> None:
    pytest.importorskip("vllm")
    trl = pytest.importorskip("trl")
    template = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    tokenizer = make_tokenizer(template.read_text("utf-8"))
    tokenizer.bos_token = "<|endoftext|>"
    prompt = prompt_text(tokenizer, TALK, tools)
    assert "And Rome?" in prompt
    assert prompt == served_prompt(tokenizer, tools)
