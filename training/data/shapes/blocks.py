"""Blocks of content as messages in OpenAI's keys.

Anthropic's message of the assistant may hold `thinking`, `text` and `tool_use`; the results of
tools lie in the next message of the user, as `tool_result`. LLaMA-Factory's newer messages hold
`reasoning`, `text` and `tool_call`, each with a `value`.
"""

from __future__ import annotations

from typing import Any

from training.data.shapes.values import joined_text

BLOCKS = {
    "thinking": "thinking", "tool_use": "tool_use", "tool_result": "tool_result",
    "reasoning": "thinking", "tool_call": "tool_use",
}  # fmt: skip
"""Each name of a block, and Anthropic's."""


def without_blocks(turn: Any, where: str) -> list[Any]:
    """Return the messages that one message with such blocks is; any other message as it is.

    Raises:
        RowProblem: The result of a tool is not text.
    """
    content = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(content, list) or not any(_kind(block) in BLOCKS for block in content):
        return [turn]
    by_kind: dict[str, list[Any]] = {name: [] for name in (*BLOCKS.values(), "text")}
    for block in content:
        by_kind[BLOCKS.get(_kind(block), "text")].append(block)
    results = [
        {
            "role": "tool",
            "content": joined_text(block.get("content") or "", f"{where}.content"),
            "tool_call_id": block.get("tool_use_id"),
        }
        for block in by_kind["tool_result"]
    ]
    message = {**turn, "content": by_kind["text"] or None}
    if by_kind["thinking"]:
        thoughts = [{"text": b.get("thinking", b.get("value"))} for b in by_kind["thinking"]]
        message["thinking"] = joined_text(thoughts, f"{where}.content")
    if by_kind["tool_use"]:
        message["tool_calls"] = [block.get("value", block) for block in by_kind["tool_use"]]
    is_more = len(results) < len(content)
    return [*results, message] if is_more else results


def _kind(block: Any) -> Any:
    return block.get("type") if isinstance(block, dict) else None
