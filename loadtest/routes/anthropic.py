"""`/v1/messages`: the events of Anthropic's Messages API.

The first token is the first delta that is not empty: `text_delta`, `thinking_delta` or
`input_json_delta`. A `signature_delta`, a `ping` and the begin of a block hold no token.
`message_delta` carries the stop reason and the output tokens, `message_stop` ends the answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from loadtest.client.answer import Events, count_of, fields_of
from tuneline.core.messages import Message
from tuneline.core.server_words import error_message, text_of


class _Delta(msgspec.Struct, gc=False):
    type: Any = None
    text: Any = None
    thinking: Any = None
    partial_json: Any = None
    stop_reason: Any = None


class _Start(msgspec.Struct, gc=False):
    model: Any = None
    usage: Any = None


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    index: Any = None
    content_block: Any = None
    delta: _Delta | None = None
    message: _Start | None = None
    usage: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class MessagesEvents(Events):
    """Reads the events of `/v1/messages`."""

    __slots__ = ()

    def read(self, payload: bytes, place: int) -> None:
        """Read one event."""
        event = _decode(payload)
        if event.type == "error" or (event.type is None and event.error):
            self.end("error_event", error_message(payload))
            return
        answer, delta = self.answer, event.delta
        if event.type == "message_start" and event.message is not None:
            self.name_model(event.message.model)
            # The count of output tokens at the begin is not the answer's.
            self.count_prompt(fields_of(event.message.usage))
        elif event.type == "content_block_delta" and delta is not None:
            text = text_of(delta.text or delta.thinking or delta.partial_json)
            if text:
                self.add(text, place, is_content=bool(delta.text))
            if delta.partial_json:
                self.add_call(str(event.index), "", delta.partial_json)
        elif event.type == "content_block_start":
            block = fields_of(event.content_block)
            if block.get("type") == "tool_use":
                self.add_call(str(event.index), block.get("name"), block.get("input") or "")
        elif event.type == "message_delta":
            usage = fields_of(event.usage)
            self.count_prompt(usage)
            self.count(completion=usage.get("output_tokens"))
            if delta is not None and delta.stop_reason is not None:
                answer.finish_time = self.times[place]
                answer.finish_reason = str(delta.stop_reason)
        elif event.type == "message_stop":
            answer.done = True

    def count_prompt(self, usage: dict[str, Any]) -> None:
        """Take the counts of the prompt. Its cached tokens are not part of `input_tokens`."""
        cached = count_of(usage.get("cache_read_input_tokens"))
        prompt = count_of(usage.get("input_tokens"))
        if prompt is not None:
            written = count_of(usage.get("cache_creation_input_tokens")) or 0
            prompt += (cached or 0) + written
        self.count(prompt=prompt, cached=cached)


def items_of(message: Message) -> list[dict[str, Any]]:
    """Return a chat message as entries of `messages`; the system's go to a key of their own."""
    if message["role"] in ("system", "developer"):
        return []
    if message["role"] == "tool":
        call_id = message.get("tool_call_id") or "call_0"
        result = {"type": "tool_result", "tool_use_id": call_id, "content": _content(message)}
        return [{"role": "user", "content": [result]}]
    calls = message.get("tool_calls") or []
    if not calls:
        return [{"role": message["role"], "content": _content(message)}]
    blocks: list[dict[str, Any]] = []
    if message.get("content"):
        blocks.append({"type": "text", "text": _content(message)})
    for call in calls:
        function = call["function"]
        blocks.append(
            {
                "type": "tool_use",
                "id": call.get("id") or "call_0",
                "name": function["name"],
                "input": _arguments(function["arguments"]),
            }
        )
    return [{"role": "assistant", "content": blocks}]


def _content(message: Message) -> Any:
    """Return a message's content; only the user's has parts."""
    content = message["content"]
    if not isinstance(content, list):
        return content
    return [_block(part) for part in content] if message["role"] == "user" else text_of(content)


def _block(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    url = part["image_url"]["url"]
    head, _, data = url.partition(",")
    if not head.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind = head.removeprefix("data:").partition(";")[0]
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _arguments(text: Any) -> Any:
    """Return a call's arguments as an object, which the route wants."""
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": text}


def options_of(max_tokens: int, tools: Sequence[Any], system: str) -> dict[str, Any]:
    """Return the route's own keys of a request."""
    found: dict[str, Any] = {"max_tokens": max_tokens, "stream": True}
    if system:
        found["system"] = system
    if tools:
        found["tools"] = [
            {
                "name": tool["function"]["name"],
                "description": tool["function"].get("description", ""),
                "input_schema": tool["function"].get("parameters", {"type": "object"}),
            }
            for tool in tools
        ]
    return found
