"""The answers of the server of known delays over `/v1/responses` and `/v1/messages`."""

from __future__ import annotations

import json
from typing import Any

from loadtest.calibration.known_stream import NUM_TOKENS_WITHOUT_TEXT, Stream


class NamedStream(Stream):
    """An answer whose events have names, and whose end is an event of its own."""

    def named(self, document: dict[str, Any]) -> bytes:
        """Return an event that has the name of its type."""
        newline = b"\r\n" if self.fault == "crlf" else b"\n"
        name = str(document["type"]).encode()
        data = json.dumps(document, ensure_ascii=False).encode()
        return self.ended(b"event: " + name + newline + b"data: " + data)

    def num_output_tokens(self) -> int:
        """Return the tokens of the usage."""
        known = {**NUM_TOKENS_WITHOUT_TEXT, "length": self.total}
        return known.get(self.fault or "", self.sent)


class ResponsesStream(NamedStream):
    """An answer over `/v1/responses`."""

    def plain_opening(self) -> bytes:
        """Return the events before the first token."""
        part = {"type": "output_text", "text": ""}
        return (
            self.named({"type": "response.created", "response": self.response("in_progress")})
            + self.named({"type": "response.output_item.added", "item": {"type": "message"}})
            + self.named({"type": "response.content_part.added", "part": part})
        )

    def plain_text(self, text: str) -> bytes:
        """Return an event with a text."""
        return self.named({"type": "response.output_text.delta", "delta": text})

    def plain_tail(self) -> bytes:
        """Return the events after the last token; the whole text comes once more."""
        data = self.named({"type": "response.output_text.done", "text": "the whole text"})
        if self.fault == "no-done":
            return data
        response = self.response("completed")
        if self.fault != "no-usage":
            response["usage"] = {
                "input_tokens": 7,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self.num_output_tokens(),
            }
        return data + self.named({"type": "response.completed", "response": response})

    def response(self, status: str) -> dict[str, Any]:
        """Return the response object of an event."""
        return {
            "id": f"resp_{self.truth.request_id}",
            "model": self.server.model,
            "status": status,
            "usage": None,
        }


class MessagesStream(NamedStream):
    """An answer over `/v1/messages`."""

    def plain_opening(self) -> bytes:
        """Return the events before the first token."""
        message = {
            "id": f"msg_{self.truth.request_id}",
            "role": "assistant",
            "model": self.server.model,
            "usage": {"input_tokens": 7, "output_tokens": 0},
        }
        block = {"type": "text", "text": ""}
        return (
            self.named({"type": "message_start", "message": message})
            + self.named({"type": "ping"})
            + self.named({"type": "content_block_start", "index": 0, "content_block": block})
        )

    def plain_text(self, text: str) -> bytes:
        """Return an event with a text."""
        delta = {"type": "text_delta", "text": text}
        return self.named({"type": "content_block_delta", "index": 0, "delta": delta})

    def plain_tail(self) -> bytes:
        """Return the events after the last token."""
        end: dict[str, Any] = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}
        if self.fault != "no-usage":
            end["usage"] = {"input_tokens": 7, "output_tokens": self.num_output_tokens()}
        data = self.named({"type": "content_block_stop", "index": 0}) + self.named(end)
        return data if self.fault == "no-done" else data + self.named({"type": "message_stop"})
