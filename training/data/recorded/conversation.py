"""The conversation of one recorded request, by the route that it asked.

The columns are those of a row of `messages`, with the last message as the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from training.data.problem import RowProblem

Columns = dict[str, Any]
SEVERAL = "several answers to one request"
CUT = "the answer was cut off at its limit"
NO_TURNS = "a text completion has no turns"
OTHER = "the answer has no message"


class Unfit(Exception):
    """A request that makes no row; its text is the reason, the same for every such request."""


def columns_of(record: Mapping[str, Any]) -> Columns:
    """Return `messages`, and `tools` if there are any, of a recorded request.

    Raises:
        Unfit: The route has no turns, or the answer is not whole.
        RowProblem: The request has another form than its route's.
    """
    route = record.get("route")
    convert = ROUTES.get(route) if isinstance(route, str) else None
    if convert is None:
        raise Unfit(NO_TURNS if route == "/v1/completions" else f"requests of {route}")
    request, answer = record.get("request"), record.get("answer")
    if not isinstance(request, dict) or not isinstance(answer, dict):
        raise RowProblem("expected a request and its answer")
    try:
        return convert(request, answer)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise RowProblem(f"the request has another form than {route}: {error!r}") from None


def _chat(request: Mapping[str, Any], answer: Mapping[str, Any]) -> Columns:
    if len(answer["choices"]) != 1:
        raise Unfit(SEVERAL)
    (choice,) = answer["choices"]
    if choice.get("finish_reason") == "length":
        raise Unfit(CUT)
    messages = [*request["messages"], _answer(choice["message"])]
    tools = request.get("tools") or request.get("functions")
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _answer(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of the server with what a model writes."""
    kept = ("role", "content", "refusal", "reasoning", "reasoning_content", "tool_calls")
    found = {name: message[name] for name in kept if message.get(name) not in (None, [])}
    found["role"] = "assistant"
    if not found.get("tool_calls") and "content" not in found and "refusal" not in found:
        raise Unfit(OTHER)
    return found


def _response(request: Mapping[str, Any], answer: Mapping[str, Any]) -> Columns:
    if answer.get("status") == "incomplete":
        raise Unfit(CUT)
    given = request["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    system = request.get("instructions")
    messages = [{"role": "system", "content": system}] if system else []
    messages += _turns([*items, *answer["output"]])
    if messages[-1]["role"] != "assistant":
        raise Unfit(OTHER)
    # Tools that the server has itself, such as a search, have no name.
    tools = [tool for tool in request.get("tools") or () if tool.get("type") == "function"]
    return {"messages": messages, **({"tools": tools} if tools else {})}


def _turns(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages of items of `/v1/responses`: reasoning and calls join the assistant's."""
    messages: list[dict[str, Any]] = []
    own: dict[str, Any] = {}  # what the assistant has said since the last other message

    def end() -> None:
        if own:
            messages.append({"role": "assistant", **own})
            own.clear()

    for item in items:
        kind = item.get("type", "message")
        if kind == "reasoning":
            own["reasoning_content"] = _text(item.get("content") or item.get("summary") or [])
        elif kind == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            own.setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            end()
            output = _text(item["output"])
            messages.append({"role": "tool", "content": output, "tool_call_id": item["call_id"]})
        elif kind == "message" and item["role"] == "assistant":
            if "content" in own or "tool_calls" in own:
                end()
            own["content"] = _text(item["content"])
        elif kind == "message":
            end()
            messages.append({"role": item["role"], "content": _text(item["content"])})
        else:
            raise Unfit(f"an item of type {kind}")
    end()
    return messages


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            raise Unfit(f"content of type {part.get('type')}")
        texts.append(text)
    return "\n".join(texts)


def _message(request: Mapping[str, Any], answer: Mapping[str, Any]) -> Columns:
    if answer.get("stop_reason") == "max_tokens":
        raise Unfit(CUT)
    if not answer["content"]:
        raise Unfit(OTHER)
    own = {"role": "assistant", "content": answer["content"]}
    system = request.get("system")
    first = [{"role": "system", "content": _text(system)}] if system else []
    messages = [*first, *request["messages"], own]
    tools = request.get("tools")
    return {"messages": messages, **({"tools": tools} if tools else {})}


ROUTES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Columns]] = {
    "/v1/chat/completions": _chat,
    "/v1/responses": _response,
    "/v1/messages": _message,
}
"""Each route that has turns, and how a request and its answer become columns."""
