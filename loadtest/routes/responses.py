"""`/v1/responses`: the events of OpenAI's Responses API.

The first token is the first delta that is not empty: of a text, of reasoning, of a refusal, or of a
tool's arguments. `response.completed` and `response.incomplete` end the answer and carry the usage.
Events that repeat a whole text (`response.output_text.done`) hold no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from loadtest.client.answer import Answer, Events, count_of
from tuneline.core.messages import Message
from tuneline.core.server_words import encodable, error_message, text_of

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
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class ResponsesEvents(Events):
    """Reads the events of `/v1/responses`."""

    __slots__ = ()

    def read(self, payload: bytes, place: int) -> None:
        """Read one event."""
        try:
            event = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.end("invalid_sse", f"{error}: {payload[:120]!r}")
            return
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
        response = event.response
        if response is None:
            return
        answer = self.answer
        if not answer.model and isinstance(response.model, str):
            answer.model = encodable(response.model)
        if kind in ENDS:
            answer.finish_time = self.times[place]
            answer.finish_reason = "stop"
            details = response.incomplete_details
            if kind == "response.incomplete" or response.status == "incomplete":
                reason = details.get("reason") if isinstance(details, dict) else None
                answer.finish_reason = str(reason or "incomplete")
            take_usage(answer, response.usage)
            answer.done = True


def take_usage(answer: Answer, usage: Any) -> None:
    """Put the counts of a usage into the answer."""
    if not isinstance(usage, dict):
        return
    if (count := count_of(usage.get("output_tokens"))) is not None:
        answer.completion_tokens = count
    if (count := count_of(usage.get("input_tokens"))) is not None:
        answer.prompt_tokens = count
    details = usage.get("input_tokens_details")
    if isinstance(details, dict) and (count := count_of(details.get("cached_tokens"))) is not None:
        answer.cached_tokens = count


def items_of(message: Message) -> list[dict[str, Any]]:
    """Return a chat message as items of `input`."""
    if message["role"] == "tool":
        call_id = message.get("tool_call_id") or "call_0"
        return [{"type": "function_call_output", "call_id": call_id, "output": message["content"]}]
    items: list[dict[str, Any]] = []
    if message.get("content"):
        items.append({"role": message["role"], "content": message["content"]})
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


def options_of(max_tokens: int, tools: Sequence[Any], _system: str) -> dict[str, Any]:
    """Return the route's own keys of a request."""
    # A server that keeps answers would keep one per request of the load test.
    found: dict[str, Any] = {"max_output_tokens": max_tokens, "stream": True, "store": False}
    if tools:
        found["tools"] = [{"type": "function", **tool["function"]} for tool in tools]
    return found
