"""`/v1/responses`: the events of OpenAI's Responses API.

The first token is the first delta that is not empty: of a text, of reasoning, of a refusal, or of a
tool's arguments. `response.completed` and `response.incomplete` end the answer and carry the usage.
Events that repeat a whole text (`response.output_text.done`) hold no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from loadtest.client.answer import Events, fields_of
from tuneline.core.messages import Message
from tuneline.core.server_words import error_message, text_of

ENDS = ("response.completed", "response.incomplete")


class _Response(msgspec.Struct, gc=False):
    model: Any = None
    usage: Any = None
    status: Any = None
    incomplete_details: Any = None
    error: Any = None


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    delta: Any = None
    response: _Response | None = None
    item: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class ResponsesEvents(Events):
    """Reads the events of `/v1/responses`."""

    __slots__ = ()

    def read(self, payload: bytes, place: int) -> None:
        """Read one event."""
        event = _decode(payload)
        kind = event.type if isinstance(event.type, str) else ""
        if kind == "error" or kind == "response.failed" or (not kind and event.error):
            self.end("error_event", error_message(payload))
            return
        if kind.endswith(".delta"):
            text = text_of(event.delta)
            if text:
                is_content = kind == "response.output_text.delta"
                self.add(text, place, is_content=is_content)
            return
        if kind == "response.output_item.done":
            item = fields_of(event.item)
            if item.get("type") == "function_call":
                self.add_call(len(self.calls), item.get("name"), item.get("arguments") or "")
            return
        response = event.response
        if response is None:
            return
        self.name_model(response.model)
        answer = self.answer
        if kind in ENDS:
            answer.finish_time = self.times[place]
            answer.finish_reason = "stop"
            if kind == "response.incomplete" or response.status == "incomplete":
                reason = fields_of(response.incomplete_details).get("reason")
                answer.finish_reason = str(reason or "incomplete")
            usage = fields_of(response.usage)
            self.count(
                completion=usage.get("output_tokens"),
                prompt=usage.get("input_tokens"),
                cached=fields_of(usage.get("input_tokens_details")).get("cached_tokens"),
            )
            answer.done = True


def items_of(message: Message) -> list[dict[str, Any]]:
    """Return a chat message as items of `input`."""
    if message["role"] == "tool":
        call_id = message.get("tool_call_id") or "call_0"
        output = _content(message)
        return [{"type": "function_call_output", "call_id": call_id, "output": output}]
    items: list[dict[str, Any]] = []
    if message.get("content"):
        items.append({"role": message["role"], "content": _content(message)})
    for call in message.get("tool_calls") or []:
        function = call["function"]
        items.append(
            {
                "type": "function_call",
                "call_id": call.get("id") or "call_0",
                "name": function["name"],
                "arguments": function["arguments"],
            }
        )
    return items


def _content(message: Message) -> Any:
    """Return a message's content; only the user's has parts."""
    content = message["content"]
    if not isinstance(content, list):
        return content
    if message["role"] != "user":
        return text_of(content)
    return [
        {"type": "input_text", "text": part["text"]}
        if part["type"] == "text"
        else {
            "type": "input_image",
            "image_url": part["image_url"]["url"],
            "detail": part["image_url"].get("detail", "auto"),
        }
        for part in content
    ]


def options_of(max_tokens: int, tools: Sequence[Any], _system: str) -> dict[str, Any]:
    """Return the route's own keys of a request."""
    # A server that keeps answers would keep one per request of the load test.
    found: dict[str, Any] = {"max_output_tokens": max_tokens, "stream": True, "store": False}
    if tools:
        found["tools"] = [{"type": "function", **tool["function"]} for tool in tools]
    return found
