"""The types of a chat."""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]
"""One message of a chat, with OpenAI's keys. A key without a value is absent, never null.

`role`: system, developer, user, assistant or tool.
`content`: text; absent or empty in a message that only calls tools.
`reasoning_content`: the text that an assistant thinks before its answer.
`tool_calls`: the assistant's calls, `{"type": "function", "function": {"name", "arguments"}}` each,
with `arguments` as an object; a call may have an `id`.
`tool_call_id`, `name`: the call that a tool's message answers, and the tool's name.
"""

Messages = list[Message]
"""A conversation in order."""


def content_of(message: Message) -> str:
    """Return a message's text; empty for a message that only calls tools."""
    content: str = message.get("content") or ""
    return content
