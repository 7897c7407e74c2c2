"""The answer of a request as one document, also if the server sent it in pieces.

A document has the form of the route's answer without `stream`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Event = dict[str, Any]
_TEXTS = ("content", "reasoning", "reasoning_content", "refusal")
_DELTAS = {
    "text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature",
    "input_json_delta": "partial_json",
}  # fmt: skip
"""The field of each kind of delta of `/v1/messages`."""


def join_answer(route: str, body: bytes, *, is_stream: bool) -> dict[str, Any] | None:
    """Return the answer of a route; None if it is not whole, or has an error in it.

    Args:
        route: One of `ROUTES`.
        body: The whole body: a JSON document, or the events of a stream.
    """
    if is_stream:
        return ROUTES[route](_events(body))
    try:
        document = json.loads(body)
    except ValueError:
        return None
    is_answer = isinstance(document, dict) and not document.get("error")
    return document if is_answer else None


def _events(body: bytes) -> Iterator[Event]:
    """Yield the documents of a stream of events; an error is an event with `error`."""
    for line in body.replace(b"\r\n", b"\n").split(b"\n"):
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data not in (b"", b"[DONE]"):
            try:
                event = json.loads(data)
            except ValueError:
                event = None
            yield event if isinstance(event, dict) else {"error": "not a document"}


def _join_chat(events: Iterator[Event]) -> dict[str, Any] | None:
    def add(choice: Event, part: Event) -> None:
        message = choice.setdefault("message", {"role": "assistant"})
        delta = part.get("delta") or {}
        for name in _TEXTS:
            if isinstance(delta.get(name), str):
                message[name] = message.get(name, "") + delta[name]
        for call in delta.get("tool_calls") or ():
            _add_call(message.setdefault("tool_calls", []), call)

    return _join_choices(events, add, "chat.completion")


def _add_call(calls: list[Event], part: Event) -> None:
    """Add a piece of a tool call to the call with its index."""
    index = part.get("index", len(calls))
    call = next((one for one in calls if one["index"] == index), None)
    if call is None:
        call = {"index": index, "type": "function", "function": {"name": "", "arguments": ""}}
        calls.append(call)
    if part.get("id"):
        call["id"] = part["id"]
    function = part.get("function") or {}
    call["function"]["name"] = function.get("name") or call["function"]["name"]
    call["function"]["arguments"] += function.get("arguments") or ""


def _join_completion(events: Iterator[Event]) -> dict[str, Any] | None:
    def add(choice: Event, part: Event) -> None:
        choice["text"] = choice.get("text", "") + (part.get("text") or "")

    return _join_choices(events, add, "text_completion")


def _join_choices(
    events: Iterator[Event], add: Callable[[Event, Event], None], kind: str
) -> dict[str, Any] | None:
    """Return the answer of a route whose events have `choices`; each must have ended."""
    choices: dict[int, Event] = {}
    answer: dict[str, Any] = {"object": kind}
    for event in events:
        if event.get("error"):
            return None
        answer |= {name: event[name] for name in ("id", "created", "model") if name in event}
        if event.get("usage"):
            answer["usage"] = event["usage"]
        for part in event.get("choices") or ():
            index = part.get("index", 0)
            choice = choices.setdefault(index, {"index": index, "finish_reason": None})
            add(choice, part)
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
    answer["choices"] = [choices[index] for index in sorted(choices)]
    ends = [choice["finish_reason"] for choice in answer["choices"]]
    return answer if ends and all(ends) and "error" not in ends else None


def _join_response(events: Iterator[Event]) -> dict[str, Any] | None:
    last = None
    for event in events:
        if event.get("error") or event.get("type") in ("error", "response.failed"):
            return None
        if event.get("type") in ("response.completed", "response.incomplete"):
            last = event.get("response")
    return last if isinstance(last, dict) else None


def _join_message(events: Iterator[Event]) -> dict[str, Any] | None:
    message: dict[str, Any] | None = None
    is_ended = False
    for event in events:
        kind = event.get("type")
        if event.get("error") or kind == "error":
            return None
        if kind == "message_start":
            message = {**event["message"], "content": []}
        elif message is None:
            continue
        elif kind == "content_block_start":
            message["content"].append(dict(event["content_block"]))
        elif kind == "content_block_delta" and message["content"]:
            _add_delta(message["content"][-1], event.get("delta") or {})
        elif kind == "message_delta":
            message |= event.get("delta") or {}
            message["usage"] = (message.get("usage") or {}) | (event.get("usage") or {})
        is_ended = is_ended or kind == "message_stop"
    if message is None or not is_ended:
        return None
    for block in message["content"]:
        if "partial_json" in block:
            block["input"] = json.loads(block.pop("partial_json") or "{}")
    return message


def _add_delta(block: Event, delta: Event) -> None:
    name = _DELTAS.get(delta.get("type", ""))
    if name is not None:
        block[name] = block.get(name, "") + delta.get(name, "")


ROUTES: dict[str, Callable[[Iterator[Event]], dict[str, Any] | None]] = {
    "/v1/chat/completions": _join_chat,
    "/v1/completions": _join_completion,
    "/v1/responses": _join_response,
    "/v1/messages": _join_message,
}
"""Each route whose answers are recorded, and how the events of its stream become an answer."""
