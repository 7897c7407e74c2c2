"""Tool calls are trained, tool results are not, and reasoning is where a server generates it.

The templates are those that TRL ships, byte for byte those of the models; Mistral's has the
structure of its v3 template. The expected texts are written by hand from the models' formats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from tests.integration.training.tiny import make_tokenizer
from training.data.row import Row
from training.rendering.chat import render_row, render_rows
from training.rendering.show import show_row
from tuneline.core.errors import ConfigError
from tuneline.core.messages import Message

MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set system, loop_messages = messages[0].content + '\n\n', messages[1:] %}"
    "{% else %}{% set system, loop_messages = '', messages %}{% endif %}"
    "{% set ns = namespace(last=0) %}{% for m in loop_messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in loop_messages %}"
    "{% if m.role == 'user' %}{% if tools and loop.index0 == ns.last %}[AVAILABLE_TOOLS] "
    "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] "
    "{{ system if loop.index0 == ns.last }}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{{ c.function | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}]</s>"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ {'content': m.content} | tojson }}"
    "[/TOOL_RESULTS]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>",
    "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|start|>", "<|message|>",
    "<|channel|>", "<|end|>", "<|return|>", "<|call|>", "[INST]", "[/INST]", "[TOOL_CALLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "<|user|>",
    "<|observation|>",
)  # fmt: skip

CALL = {"type": "function", "function": {"name": "look", "arguments": {"city": "Oslo"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ANSWERS: tuple[tuple[str, Message], ...] = (
    ("a call is needed", {"role": "assistant", "content": "", "tool_calls": [CALL]}),
    ("the tool says sun", {"role": "assistant", "content": "Sun in Oslo."}),
    ("no call is needed", {"role": "assistant", "content": "Rain."}),
)
"""The reasoning and the message of each assistant turn."""

STOPS = {
    "llama3_1": ("<|eot_id|>", "<|eom_id|>"), "llama3_2": ("<|eot_id|>", "<|eom_id|>"),
    "qwen3": ("<|im_end|>",), "gptoss": ("<|return|>", "<|call|>"), "mistral": ("</s>",),
    "gemma3": ("<end_of_turn>",), "glm4moe": ("<|user|>", "<|observation|>"),
}  # fmt: skip
"""The stop tokens of each model's generation_config.json."""
REASONS = ("qwen3", "gptoss", "glm4moe")

THOUGHT = "<think>\n{}\n</think>\n\n"
ANALYSIS = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
GENERATED = {
    "llama3_1": (
        '{"name": "look", "parameters": {"city": "Oslo"}}<|eot_id|>',
        "Sun in Oslo.<|eot_id|>",
        "Rain.<|eot_id|>",
    ),
    "llama3_2": (
        '{"name": "look", "parameters": {"city": "Oslo"}}<|eot_id|>',
        "Sun in Oslo.<|eot_id|>",
        "Rain.<|eot_id|>",
    ),
    "qwen3": (
        THOUGHT.format(ANSWERS[0][0])
        + '<tool_call>\n{"name": "look", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
        THOUGHT.format(ANSWERS[1][0]) + "Sun in Oslo.<|im_end|>",
        THOUGHT.format(ANSWERS[2][0]) + "Rain.<|im_end|>",
    ),
    "gptoss": (
        ANALYSIS.format(ANSWERS[0][0])
        + ' to=functions.look<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
        ANALYSIS.format(ANSWERS[1][0]) + "<|channel|>final<|message|>Sun in Oslo.<|return|>",
        ANALYSIS.format(ANSWERS[2][0]) + "<|channel|>final<|message|>Rain.<|return|>",
    ),
    "mistral": (
        '[TOOL_CALLS] [{"name": "look", "arguments": {"city": "Oslo"}}]</s>',
        " Sun in Oslo.</s>",
        " Rain.</s>",
    ),
    "glm4moe": (
        f"\n<think>{ANSWERS[0][0]}</think>\n<tool_call>look\n<arg_key>city</arg_key>\n"
        "<arg_value>Oslo</arg_value>\n</tool_call><|observation|>",
        f"\n<think>{ANSWERS[1][0]}</think>\nSun in Oslo.<|user|>",
        f"\n<think>{ANSWERS[2][0]}</think>\nRain.<|user|>",
    ),
    "gemma3": (None, "Sun in Oslo.<end_of_turn>", "Rain.<end_of_turn>"),
}
"""The text that a server generates at each turn."""


def _tokenizer(name: str) -> Any:
    trl = pytest.importorskip("trl")
    text = MISTRAL
    if name != "mistral":
        text = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    tokenizer = make_tokenizer(text)
    added = [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    tokenizer.add_special_tokens({"additional_special_tokens": added, "bos_token": "<s>"})
    return tokenizer


def _row(name: str, *, with_tools: bool = True) -> Row:
    answers = [
        {**message, "reasoning_content": reasoning} if name in REASONS else message
        for reasoning, message in ANSWERS
    ]
    messages: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Oslo?"},
        *([answers[0], {"role": "tool", "content": "sunny 21"}] if with_tools else []),
        answers[1],
        {"role": "user", "content": "And Rome?"},
        answers[2],
    ]
    return Row(tuple(messages[:-1]), (messages[-1],), tools=(TOOL,) if with_tools else (), line=1)


def _stop_ids(tokenizer: Any, name: str) -> list[int]:
    return [int(tokenizer.convert_tokens_to_ids(text)) for text in STOPS[name]]


def _served_prompt(tokenizer: Any, row: Row, end: int) -> tuple[int, ...]:
    """The prompt of one turn, by transformers itself as a server calls it."""
    messages = [
        {**m, "thinking": m["reasoning_content"]} if "reasoning_content" in m else m
        for m in row.messages[:end]
    ]
    return tuple(
        tokenizer.apply_chat_template(
            messages, tools=list(row.tools) or None, add_generation_prompt=True, return_dict=False
        )
    )


@pytest.mark.parametrize("name", STOPS)
def test_calls_and_reasoning_are_trained_as_a_server_generates_them(name: str) -> None:
    tokenizer, row = _tokenizer(name), _row(name, with_tools=name != "gemma3")
    examples = render_row(tokenizer, row, stop_ids=_stop_ids(tokenizer, name), file="rows.jsonl")
    found = {
        tuple(one.input_ids[:start]): tokenizer.decode(one.input_ids[start:end])
        for one in examples
        for start, end in one.spans
    }
    expected = [text for text in GENERATED[name] if text is not None]
    ends = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    assert len(found) == len(ends) == len(expected) >= 2
    for end, text in zip(ends, expected, strict=True):
        assert found[_served_prompt(tokenizer, row, end)] == text


@pytest.mark.parametrize("name", [name for name in STOPS if name != "gemma3"])
def test_tool_results_and_prompts_are_shown_as_not_trained(name: str) -> None:
    tokenizer, row = _tokenizer(name), _row(name)
    shown = show_row(tokenizer, row, stop_ids=_stop_ids(tokenizer, name), file="rows.jsonl")
    trained = tokenizer.decode([t.id for one in shown for t in one.tokens if t.is_trained])
    others = tokenizer.decode([t.id for one in shown for t in one.tokens if not t.is_trained])
    for text in ("sunny 21", "Weather in Oslo?", "And Rome?", "Be brief."):
        assert text in others and text not in trained
    assert trained.count("Sun in Oslo.") == trained.count("Rain.") == 1
    for reasoning, _ in ANSWERS:
        assert trained.count(reasoning) == (name in REASONS)


def test_a_template_without_tools_is_refused_by_name() -> None:
    tokenizer = _tokenizer("gemma3")
    with pytest.raises(ConfigError, match="leaves out the row's tools, 'look'") as caught:
        render_row(
            tokenizer, _row("gemma3"), stop_ids=_stop_ids(tokenizer, "gemma3"), file="rows.jsonl"
        )
    assert "rows.jsonl: line 1" in str(caught.value) and caught.value.hint


def _calling_row(content: str, *cities: str) -> Row:
    calls = [
        {"type": "function", "function": {"name": "look", "arguments": {"city": city}}}
        for city in cities
    ]
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    return Row(({"role": "user", "content": "Weather?"},), (message,), tools=(TOOL,), line=1)


def test_a_template_that_writes_one_call_of_two_is_refused() -> None:
    tokenizer, row = _tokenizer("gptoss"), _calling_row("", "Oslo", "Rome")
    with pytest.raises(
        ConfigError, match="leaves out one of the row's tool_calls, 'look'"
    ) as found:
        render_row(tokenizer, row, stop_ids=_stop_ids(tokenizer, "gptoss"), file="rows.jsonl")
    assert "rows.jsonl: line 1" in str(found.value) and "message of its own" in str(
        found.value.hint
    )


@pytest.mark.parametrize(("name", "is_said"), [("mistral", True), ("qwen3", False)])
def test_text_next_to_a_call_that_is_left_out_is_said(
    name: str, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer, row = _tokenizer(name), _calling_row("Let me look.", "Oslo")
    stop_ids = _stop_ids(tokenizer, name)
    (found,) = render_rows(tokenizer, [row], stop_ids=stop_ids, max_length=999, file="rows.jsonl")
    assert ("Let me look." in tokenizer.decode(found.input_ids)) is not is_said
    assert ("leaves out the text next to a tool call, 'Let me look.'" in caplog.text) is is_said
