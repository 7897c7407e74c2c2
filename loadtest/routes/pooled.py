"""`/v1/embeddings`, `/pooling`, `/classify`, `/score` and `/v1/rerank`: vectors and scores.

An answer is one JSON document, which comes whole: its time is that of its last byte. Formats:
OpenAI's embeddings, vLLM's pooling routes, and the rerank route of Jina and Cohere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from loadtest.client.answer import Events, fields_of
from tuneline.core.server_words import encodable, error_message, printable

MAX_SHOWN = 400
Entry = TypeVar("Entry")


class _Vector(msgspec.Struct, gc=False):
    embedding: list[float] | str
    """The text is base64, if the request asks for that."""


class _Pooled(msgspec.Struct, gc=False):
    data: list[Any] | str


class _Classified(msgspec.Struct, gc=False):
    probs: list[float]


class _Scored(msgspec.Struct, gc=False):
    score: float


class _Ranked(msgspec.Struct, gc=False):
    relevance_score: float


class _Document(msgspec.Struct, Generic[Entry], gc=False):
    data: list[Entry] | None = None
    results: list[Entry] | None = None
    """The entries of a rerank route."""
    usage: Any = None
    model: Any = None
    error: Any = None


class PooledEvents(Events):
    """Reads the document of an answer. A route's own class says what an entry of it holds."""

    is_stream = False
    entry: ClassVar[type[Any]]
    __slots__ = ()

    def read(self, payload: bytes, place: int) -> None:
        """Read the whole answer."""
        answer = self.answer
        try:
            found = msgspec.json.decode(payload, type=_Document[self.entry])  # type: ignore[name-defined]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            said = printable(payload[:80])
            self.end("malformed_answer", f"{printable(str(error))}: {said!r}")
            return
        if found.error:
            self.end("error_event", error_message(payload))
            return
        entries = found.results if found.data is None else found.data
        field = self.entry.__struct_fields__[0]
        if not entries or any(getattr(one, field) in ([], "") for one in entries):
            self.end("malformed_answer", f"no {field}: {printable(payload[:80])!r}")
            return
        answer.num_values = len(entries)
        answer.finish_time = self.times[place]
        answer.done = True
        self.name_model(found.model)
        usage = fields_of(found.usage)
        # A rerank route of another server counts the total only.
        self.count(completion=0, prompt=usage.get("prompt_tokens", usage.get("total_tokens")))
        if self.keeps_text:
            self.texts.append(encodable(payload[:MAX_SHOWN].decode(errors="replace")))


class EmbeddingsEvents(PooledEvents):
    """Reads the answers of `/v1/embeddings`."""

    __slots__ = ()
    entry = _Vector


class PoolingEvents(PooledEvents):
    """Reads the answers of `/pooling`."""

    __slots__ = ()
    entry = _Pooled


class ClassifyEvents(PooledEvents):
    """Reads the answers of `/classify`."""

    __slots__ = ()
    entry = _Classified


class ScoreEvents(PooledEvents):
    """Reads the answers of `/score`."""

    __slots__ = ()
    entry = _Scored


class RerankEvents(PooledEvents):
    """Reads the answers of `/v1/rerank`."""

    __slots__ = ()
    entry = _Ranked


def input_body(said: Sequence[Any]) -> dict[str, Any]:
    """Return the keys of a request for one text, of several texts or of token ids."""
    return {"input": "\n".join(said) if isinstance(said[0], str) else list(said)}


def score_body(said: Sequence[Any]) -> dict[str, Any]:
    """Return the keys of a request for the scores of a query with each of its documents."""
    return {"text_1": said[0], "text_2": list(said[1:])}


def rerank_body(said: Sequence[Any]) -> dict[str, Any]:
    """Return the keys of a request for the order of a query's documents."""
    return {"query": said[0], "documents": list(said[1:])}


def num_asked(body: Mapping[str, Any]) -> int:
    """Return how many vectors or scores a request asks for."""
    documents = body.get("documents", body.get("text_2"))
    if documents is None:
        return 1
    most = body.get("top_n")
    return min(len(documents), most) if isinstance(most, int) and most > 0 else len(documents)
