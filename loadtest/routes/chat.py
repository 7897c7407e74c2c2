"""`/v1/chat/completions` and `/v1/completions`: the events of OpenAI's streaming API.

The first token is the first event with a text, reasoning, a refusal or a tool call. An event with
only a role or an empty text holds no token.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from loadtest.client.answer import Answer, Events, count_of, fields_of
from loadtest.client.http1 import size_line
from tuneline.core.messages import Message
from tuneline.core.server_words import error_message, text_of


class _Delta(msgspec.Struct, gc=False):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Usage(msgspec.Struct, gc=False):
    completion_tokens: Any = None
    prompt_tokens: Any = None
    prompt_tokens_details: Any = None
    prompt_cache_hit_tokens: Any = None
    """DeepSeek's name of the cached tokens."""
    cached_tokens: Any = None
    """Moonshot's."""


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: Any = None
    finish_reason: Any = None
    error: Any = None
    usage: _Usage | None = None
    """Moonshot's place of the usage."""


class _Event(msgspec.Struct, gc=False):
    """The fields that are read from an event; the decoder skips all others."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    model: Any = None


class _BareError(msgspec.Struct):
    """The fields of an event that is an error as a whole."""

    object: Any = None
    code: Any = None
    message: Any = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_bare_error = msgspec.json.Decoder(_BareError).decode
_decode_text = msgspec.json.Decoder(str).decode


class ChatEvents(Events):
    """Reads the events of `/v1/chat/completions` and `/v1/completions`."""

    __slots__ = ("after", "alike_is_content", "before", "begins")

    def __init__(self, answer: Answer, times: Sequence[int], *, keeps_text: bool = True) -> None:
        super().__init__(answer, times, keeps_text=keeps_text)
        self.before: bytes | None = None
        self.after = b""
        """The bytes around the text of an event, with its quotes. Most events of a response differ
        only in the text."""
        self.alike_is_content = False
        self.begins: dict[int, bytes] = {}
        """The beginning of a read of each size: the size line, and the bytes before the text."""

    def take_alike(self, reads: Sequence[bytes], place: int, end: int) -> int:
        """Take reads that are one chunk with one event and differ from an earlier one in its text.

        Returns:
            The place of the first read that was not taken.
        """
        before, after, begins = self.before, self.after, self.begins
        if before is None or self.ended:
            return place
        text_end = 1 - len(after)
        texts = []
        for read in reads[place:end]:
            size = len(read)
            begin = begins.get(size)
            if begin is None:
                begin = begins[size] = size_line(size) + before
            if not read.startswith(begin) or not read.endswith(after):
                break
            try:
                text = _decode_text(read[len(begin) - 1 : text_end])
            except (msgspec.DecodeError, UnicodeDecodeError):  # not one string, or a broken one
                break
            if not text:
                break
            texts.append(text)
        self.places.extend(range(place, place + len(texts)))
        if self.keeps_text:
            self.texts += texts
            if self.alike_is_content:
                self.contents += texts
        return place + len(texts)

    def read(self, payload: bytes, place: int) -> None:
        """Read one event."""
        answer, event = self.answer, _decode(payload)
        if event.error or (event.choices is None and _is_error(payload)):
            self.end("error_event", error_message(payload))
            return
        choice = event.choices[0] if event.choices else None
        usage = event.usage or (choice.usage if choice is not None else None)
        if usage is not None:
            self.count(
                completion=usage.completion_tokens,
                prompt=usage.prompt_tokens,
                cached=_cached(usage),
            )
        if choice is None:
            return
        self.name_model(event.model)
        text = _text_of(choice)
        if text:
            is_content = choice.delta is None or bool(choice.delta.content)
            if self.keeps_text and choice.delta is not None and choice.delta.tool_calls:
                self.add_calls(choice.delta.tool_calls)
            self.add(text, place, is_content=is_content)
            if usage is not None and (so_far := count_of(usage.completion_tokens)) is not None:
                answer.token_counts.append(so_far)
        if choice.finish_reason is not None:
            answer.finish_time = self.times[place]
            answer.finish_reason = str(choice.finish_reason)
            if answer.finish_reason == "abort":
                self.end("aborted", "the server gave the answer up (abort)")
            elif answer.finish_reason == "error":
                # OpenRouter puts the provider's words into the choice.
                words = json.dumps({"error": choice.error}) if choice.error else "no reason given"
                said = error_message(words.encode())
                self.end("error_event", f"finish_reason is error: {said}")
        elif text and usage is None and self.before is None:
            self.learn(payload, text)

    def add_calls(self, parts: Any) -> None:
        """Add the parts of calls that an event has."""
        for place, part in enumerate(parts if isinstance(parts, list) else []):
            function = fields_of(fields_of(part).get("function"))
            index = fields_of(part).get("index")
            key = place if index is None else str(index)
            self.add_call(key, function.get("name"), function.get("arguments") or "")

    def learn(self, payload: bytes, text: str) -> None:
        """Find the place of the text in an event, and prove it by putting another text there."""
        before, quoted, after = payload.partition(b'"%b"' % text.encode(errors="replace"))
        if not quoted or b"\n" in payload:
            return
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            choices = _decode(before + b'"\\u0001"' + after).choices
            if choices and _text_of(choices[0]) == "\u0001":
                self.alike_is_content = choices[0].delta is None or bool(choices[0].delta.content)
                self.before, self.after = b'data: %b"' % before, b'"%b\n\n\r\n' % after


def _is_error(payload: bytes) -> bool:
    """Return whether an event without choices is an error as a whole.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError: One of these fields is broken.
    """
    event = _decode_bare_error(payload)
    return event.object == "error" or (event.code is not None and event.message is not None)


def _cached(usage: _Usage) -> Any:
    """Return the count of prompt tokens from a cache, by whatever name."""
    details = fields_of(usage.prompt_tokens_details).get("cached_tokens")
    found = (details, usage.prompt_cache_hit_tokens, usage.cached_tokens)
    return next((one for one in found if one is not None), None)


def _text_of(choice: _Choice) -> str:
    """Return the text that an event adds to the answer."""
    delta = choice.delta
    if delta is None:
        return str(choice.text or "")
    text = delta.content or delta.reasoning_content or delta.reasoning or delta.refusal
    if not text and (call := delta.tool_calls or delta.function_call):
        text = json.dumps(call)
    return text_of(text)


def items_of(message: Message) -> list[dict[str, Any]]:
    """Return a message as entries of `messages`."""
    return [message]


def options_of(max_tokens: int, tools: Sequence[Any], _system: str) -> dict[str, Any]:
    """Return the route's own keys of a request."""
    found: dict[str, Any] = {
        "max_tokens": max_tokens, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    if tools:
        found["tools"] = list(tools)
    return found
