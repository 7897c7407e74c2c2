"""The answers of the server of known delays with vectors and scores: one JSON document each, after
the delay of a first token."""

from __future__ import annotations

import json
import time
from typing import Any

from loadtest.calibration.known_stream import Stream


class KnownDocument(Stream):
    """An answer with an entry per text."""

    key = "data"

    def entry(self, number: int) -> dict[str, Any]:
        """Return the entry of a text."""
        raise NotImplementedError

    def write_at_once(self) -> None:
        self.step()

    def step(self) -> None:
        if not self.connection.is_open:
            self.server.num_running -= 1
            return
        if self.fault in ("stall", "reset"):
            self.break_off()
            self.server.num_running -= 1
            return
        data = self.content()
        framed = self.chunk(data) + self.last_chunk()
        if self.fault == "cut":
            framed = framed[: len(framed) // 2]
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        head += {
            "close": "Connection: close\r\n",
            "length": f"Content-Length: {len(data)}\r\n",
        }.get(self.fault or "", "Transfer-Encoding: chunked\r\n")
        self.truth.token_write_ns = [time.monotonic_ns()]
        self.write(head.encode() + b"\r\n" + framed)
        self.finish()
        if self.fault == "cut":
            self.connection.close()

    def content(self) -> bytes:
        """Return the document."""
        if self.fault == "error-event":
            error = {"message": "the engine died", "type": "Internal", "code": 500}
            return json.dumps({"error": error}).encode()
        texts = self.body.get("documents", self.body.get("text_2", [""]))
        count = {"empty": 0, "few": len(texts) - 1}.get(self.fault or "", len(texts))
        document: dict[str, Any] = {
            "id": self.truth.request_id,
            "object": "list",
            "model": self.server.model,
            self.key: [{"index": number, **self.entry(number)} for number in range(count)],
        }
        if self.fault != "no-usage":
            document["usage"] = {"prompt_tokens": 7, "total_tokens": 7}
        data = json.dumps(document).encode()
        return data[:-2] if self.fault == "invalid-sse" else data


class Embeddings(KnownDocument):
    """An answer over `/v1/embeddings`."""

    def entry(self, number: int) -> dict[str, Any]:
        return {"object": "embedding", "embedding": [0.5, -0.25 * number, 1.0]}


class Poolings(KnownDocument):
    """An answer over `/pooling`."""

    def entry(self, number: int) -> dict[str, Any]:
        return {"object": "pooling", "data": [0.5 + number]}


class Classes(KnownDocument):
    """An answer over `/classify`."""

    def entry(self, number: int) -> dict[str, Any]:
        return {"label": f"LABEL_{number}", "probs": [0.75, 0.25], "num_classes": 2}


class Scores(KnownDocument):
    """An answer over `/score`."""

    def entry(self, number: int) -> dict[str, Any]:
        return {"object": "score", "score": 0.5 / (number + 1)}


class Ranks(KnownDocument):
    """An answer over `/v1/rerank`."""

    key = "results"

    def entry(self, number: int) -> dict[str, Any]:
        text = self.body["documents"][number]
        return {"document": {"text": text}, "relevance_score": 0.5 / (number + 1)}
