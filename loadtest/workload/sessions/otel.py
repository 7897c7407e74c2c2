"""`source: otel`: conversations from OpenTelemetry's GenAI spans, as OTLP JSON.

Attributes: the semantic conventions for generative AI 1.37 (`gen_ai.conversation.id`,
`gen_ai.input.messages`, `gen_ai.output.messages`, `gen_ai.system_instructions`,
`gen_ai.tool.definitions`, `gen_ai.usage.output_tokens`); messages have a `role` and `parts`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.workload.content import (
    MAX_PROBLEMS,
    Wanted,
    file_of,
    is_text,
    json_lines,
    read_text,
)
from loadtest.workload.images import content_problem
from loadtest.workload.sessions.conversation import ROLES, Conversation, Turn
from loadtest.workload_config import tool_problems
from tuneline.core.errors import DataError
from tuneline.core.messages import Message, Messages
from tuneline.core.progress import logger

CHAT = ("chat", "generate_content", "text_completion")


@dataclass(frozen=True)
class _Span:
    key: str
    """The conversation's id, or the trace's."""
    start_s: float
    end_s: float
    messages: Messages
    answers: Messages
    max_tokens: int | None
    tools: list[dict[str, Any]]
    """In the form of OpenAI's chat route."""
    left_out: set[str]
    """Kinds of parts of its messages that a request cannot have."""


def read(wanted: Wanted) -> list[Conversation]:
    """Read a file of OTLP JSON: one document, or one per line as the collector's exporter writes.

    A delay is the time from the end of the spans that a span waits for to its start, and not below
    zero. A span of a chat that no request can repeat is left out, and `wanted.left_out` counts it.

    Raises:
        DataError: The file is not OTLP JSON, no span holds messages, or no request can repeat any.
    """
    path = file_of(wanted.workload)
    spans, problems = [], []
    for place, document in _documents(path):
        for number, span in enumerate(_spans(document), start=1):
            try:
                one = _chat(span)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                reason = _reason(error)
                problems.append(f"{path}: {place}, span {number}: {reason}")
                wanted.left_out[reason] += 1
                continue
            if one is not None:
                spans.append(one)
    if problems and not spans:
        raise DataError(problems[:MAX_PROBLEMS])
    if not spans:
        raise DataError(
            f"{path}: no span has gen_ai.input.messages; expected spans of chats with content",
            hint="The content is opt-in: record it with OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_"
            "CONTENT.",
        )
    if left_out := sorted({kind for span in spans for kind in span.left_out}):
        logger.warning("%s: requests are sent without parts of type %s", path, ", ".join(left_out))
    first_s = min(span.start_s for span in spans)
    by_key: dict[str, list[_Span]] = {}
    for span in sorted(spans, key=lambda span: span.start_s):
        by_key.setdefault(span.key, []).append(span)
    return [_conversation(one, first_s) for one in by_key.values()]


def _reason(error: Exception) -> str:
    """Return why no request can repeat a span."""
    if isinstance(error, KeyError):
        return f"the span or a part of it has no {error}"
    if isinstance(error, ValueError):
        return str(error)
    return f"the span is not OTLP JSON: {error}"


def _documents(path: Path) -> list[tuple[str, Any]]:
    text = read_text(path)
    problems: list[str] = []
    try:
        return [("the document", json.loads(text))]
    except (ValueError, RecursionError):
        pass
    found = [(f"line {number}", value) for number, value in json_lines(path, text, problems)]
    if problems:
        # A document over many lines has one mistake, and none of its lines is JSON.
        raise DataError(problems[0])
    return found


def _spans(document: Any) -> list[Any]:
    """Return the spans of an OTLP document; empty for another document."""
    found = []
    resources = document.get("resourceSpans") if isinstance(document, dict) else None
    for resource in resources if isinstance(resources, list) else []:
        scopes = resource.get("scopeSpans") if isinstance(resource, dict) else None
        for scope in scopes if isinstance(scopes, list) else []:
            spans = scope.get("spans") if isinstance(scope, dict) else None
            found += spans if isinstance(spans, list) else []
    return found


def _chat(span: Any) -> _Span | None:
    """Return a span of a chat with content; None for another span."""
    attributes = {one["key"]: _value(one.get("value")) for one in span.get("attributes") or []}
    sent = _list(attributes.get("gen_ai.input.messages"))
    if sent is None or attributes.get("gen_ai.operation.name", CHAT[0]) not in CHAT:
        return None
    messages = [message for one in sent for message in _messages(one)]
    system = _list(attributes.get("gen_ai.system_instructions"))
    if system:
        messages = [*_messages({"role": "system", "parts": system}), *messages]
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise ValueError("the input ends with neither a user nor a tool")
    received = _list(attributes.get("gen_ai.output.messages")) or []
    answers = [message for one in received[:1] for message in _messages(one)]
    tokens = attributes.get("gen_ai.usage.output_tokens")
    start_s, end_s = (int(span[key]) / 1e9 for key in ("startTimeUnixNano", "endTimeUnixNano"))
    if not 0 <= start_s <= end_s:
        raise ValueError("the span ends before it starts")
    return _Span(
        key=str(attributes.get("gen_ai.conversation.id") or span["traceId"]),
        start_s=start_s,
        end_s=end_s,
        messages=messages,
        answers=answers,
        max_tokens=tokens if isinstance(tokens, int) and 0 < tokens < 2**31 else None,
        tools=_tools(_list(attributes.get("gen_ai.tool.definitions")) or []),
        left_out=_left_out([*sent, *received[:1]]),
    )


def _tools(definitions: list[Any]) -> list[dict[str, Any]]:
    """Return tools of the conventions, or of OpenAI's chat route, in the form of that route."""
    found = []
    for one in definitions:
        inner = one.get("function") or one
        kept = {key: inner[key] for key in ("name", "description", "parameters") if inner.get(key)}
        found.append({"type": "function", "function": kept})
    if problems := tool_problems(found):
        raise ValueError(f"gen_ai.tool.definitions: {problems[0]}")
    if not is_text(json.dumps(found, ensure_ascii=False)):
        raise ValueError("gen_ai.tool.definitions holds half of a surrogate pair")
    return found


def _value(value: dict[str, Any] | None) -> Any:
    """Return the value of an attribute (`AnyValue` of OTLP; JSON writes an integer as text). A null
    value has no kind."""
    if not value:
        return None
    ((kind, inner),) = value.items()
    if kind == "intValue":
        return int(inner)
    if kind == "arrayValue":
        return [_value(one) for one in inner.get("values") or []]
    if kind == "kvlistValue":
        return {one["key"]: _value(one.get("value")) for one in inner.get("values") or []}
    return inner


def _list(value: Any) -> list[Any] | None:
    """Return a list that an attribute holds as such or as JSON; None without one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("an attribute that holds messages or tools is not JSON") from None
    return value if isinstance(value, list) else None


def _messages(message: Any) -> Messages:
    """Return a message of the conventions as chat messages; each result of a tool is its own."""
    role, parts = message["role"], message["parts"]
    role = "assistant" if role == "model" else role
    if role not in ROLES:
        raise ValueError(f"role is {str(role)[:40]!r}; expected {', '.join(ROLES)}")
    said: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: Messages = []
    for part in parts:
        kind = part.get("type")
        if kind == "text":
            said.append({"type": "text", "text": part["content"]})
        elif kind in ("blob", "uri") and part.get("modality") == "image":
            said.append({"type": "image_url", "image_url": {"url": _image_url(part)}})
        elif kind == "tool_call":
            arguments = part.get("arguments")
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments if arguments is not None else {})
            function = {"name": part["name"], "arguments": arguments}
            call_id = part.get("id") or f"call_{len(calls)}"
            calls.append({"id": call_id, "type": "function", "function": function})
        elif kind == "tool_call_response":
            response = part.get("response", part.get("result"))
            text = response if isinstance(response, str) else json.dumps(response)
            one = {"role": "tool", "content": text, "tool_call_id": part.get("id") or "call_0"}
            results.append(one)
    # Text next to results is the user's, whichever role the message has.
    found: Message = {"role": "user" if results else role, "content": _content(said)}
    if calls:
        found["tool_calls"] = calls
    if not is_text(json.dumps([found, *results], ensure_ascii=False)):
        raise ValueError("a message holds half of a surrogate pair")
    if (problem := content_problem(found["content"])) is not None:
        raise ValueError(problem)
    return [*results, *([found] if found["content"] or calls else [])]


def _content(said: list[dict[str, Any]]) -> Any:
    """Return the parts of a message as its content: one text, or a list if there is an image."""
    if all(part["type"] == "text" for part in said):
        return "".join(part["text"] for part in said)
    return [part for part in said if part.get("text") != ""]


def _image_url(part: dict[str, Any]) -> str:
    """Return the address of an image that a part names, or a data URL of its bytes."""
    if part["type"] == "uri":
        return str(part["uri"])
    return f"data:{part.get('mime_type') or 'image/png'};base64,{part['content']}"


def _left_out(messages: list[Any]) -> set[str]:
    """Return the kinds of parts that no request has. A history has no reasoning."""
    kept = ("text", "reasoning", "tool_call", "tool_call_response")
    return {
        f"{part.get('type')} ({part['modality']})"
        if part.get("modality")
        else str(part.get("type"))
        for message in messages
        for part in message["parts"]
        if part.get("type") not in kept and part.get("modality") != "image"
    }


@dataclass
class _Placed:
    """A span with its place among the turns of its conversation."""

    span: _Span
    lane: int
    follows: list[_Placed]
    """The spans whose answers it waits for; empty for one that begins with the conversation."""
    continues: bool
    """Its input begins with what its lane has said before."""

    @property
    def said(self) -> Messages:
        return [*self.span.messages, *self.span.answers]


def _conversation(spans: list[_Span], first_s: float) -> Conversation:
    """Return the turns of spans, which are in the order of their starts.

    A span waits for every span that had ended when it started, and for the one whose answer its
    input holds: the clocks of two machines may differ. Spans that overlap are branches, each with a
    lane of its own. A span whose input continues its lane adds only what is new to the history;
    another starts anew. Every turn brings the tools of all spans.
    """
    start_s = spans[0].start_s
    placed: list[_Placed] = []
    last_of: list[_Placed] = []
    """The last span of each lane."""
    ends: list[_Placed] = []
    """The spans that no ended span waits for."""
    for span in spans:
        lane, continued = _lane(last_of, span)
        ends = _last_of(ends, [one for one in ends if one.span.end_s <= span.start_s])
        follows = [one for one in ends if one.span.end_s <= span.start_s]
        if continued is not None:
            others = [one for one in follows if one is not continued]
            follows = [*_last_of(others, [continued]), continued]
        one = _Placed(span, lane, follows, continued is not None)
        placed.append(one)
        ends.append(one)
        last_of[lane : lane + 1] = [one]
    placed.sort(key=lambda one: one.lane)
    place_of = {id(one): place for place, one in enumerate(placed)}
    turns = []
    num_said = 0
    for one in placed:
        begin_s = max((before.span.end_s for before in one.follows), default=start_s)
        turns.append(
            Turn(
                one.span.messages[num_said if one.continues else 0 :],
                one.span.answers,
                max(one.span.start_s - begin_s, 0.0) if place_of[id(one)] else None,
                one.span.max_tokens,
                is_fresh=not one.continues,
                lane=one.lane,
                follows=tuple(place_of[id(before)] for before in one.follows),
            )
        )
        num_said = len(one.said)
    tools = {one["function"]["name"]: one for span in spans for one in span.tools}
    return Conversation(turns, start_s - first_s, tools=list(tools.values()))


def _last_of(found: list[_Placed], after: list[_Placed]) -> list[_Placed]:
    """Return the spans that none of the spans `after` waits for."""
    waited_for = {id(one) for later in after for one in later.follows}
    return [one for one in found if id(one) not in waited_for]


def _lane(last_of: list[_Placed], span: _Span) -> tuple[int, _Placed | None]:
    """Return the lane of a span, and the span of that lane that it continues if it does."""
    for lane, last in enumerate(last_of):
        said = last.said
        if len(span.messages) > len(said) and span.messages[: len(said)] == said:
            return lane, last
    free = (lane for lane, last in enumerate(last_of) if last.span.end_s <= span.start_s)
    return next(free, len(last_of)), None
