"""The routes that a workload can ask, by `workload.route`.

To add a route, write a module with a class of events and a function of the body, and add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.client.answer import Events
from loadtest.routes import anthropic, chat, pooled, responses
from tuneline.core.messages import Message


@dataclass(frozen=True)
class Route:
    """One route of the server."""

    path: str
    """Below the endpoint's URL; below the server's root if it begins with a slash."""
    key: str
    """The key of a request that holds what was said."""
    events: type[Events]
    """Reads the events of an answer."""
    items: Callable[[Message], list[dict[str, Any]]]
    """Returns a chat message as entries of `key`."""
    options: Callable[[int, Sequence[Any], str], dict[str, Any]]
    """Returns the route's own keys, of the most tokens, the tools and the system's messages."""
    exact: tuple[str, ...]
    """The keys that make an answer exactly as long as it may be."""
    marks: tuple[bytes, ...]
    """Bytes of an event with a text, then bytes that only an event with an empty text has: for
    clients that leave."""
    has_system: bool = False
    """Whether the system's messages have a key of their own."""
    no_call: Any = "none"
    """The `tool_choice` that shows the tools to the model and asks for no call: a server takes it
    without a parser of calls."""
    body: Callable[[Sequence[Any]], dict[str, Any]] | None = None
    """Of a route for vectors and scores: returns the keys that hold the texts, or the token ids, of
    a request. They take the place of `key`, `items` and `options`."""
    least_texts: int = 1
    """The least number of messages of a prompt."""
    scores_chats: bool = False
    """Whether the server renders a conversation with an answer, as a reward model takes it."""

    def path_below(self, root: str) -> str:
        """Return the path on the server, below the path of the endpoint's URL."""
        root = root.rstrip("/")
        if self.path.startswith("/"):
            return root.removesuffix("/v1") + self.path
        return f"{root}/{self.path}"


def _marks(key: bytes, event: bytes | None = None) -> tuple[bytes, ...]:
    """Return the marks of a route whose events have their text under a key."""
    return event or key, *(key + end for end in (b':""', b': ""', b":null", b": null"))


CHAT = {
    "events": chat.ChatEvents, "items": chat.items_of, "options": chat.options_of,
    "exact": ("ignore_eos", "min_tokens"),
}  # fmt: skip


def _pooled(
    path: str, events: type[Events], body: Callable[[Sequence[Any]], Any], least_texts: int = 1,
    *, scores_chats: bool = False,
) -> Route:  # fmt: skip
    """Return a route for vectors or scores."""
    return Route(
        path, "messages", events, chat.items_of, chat.options_of, exact=(), marks=(), body=body,
        least_texts=least_texts, scores_chats=scores_chats,
    )  # fmt: skip


ROUTES: dict[str, Route] = {
    "chat": Route(
        "chat/completions", "messages", marks=_marks(b'"content"'), **CHAT,  # type: ignore[arg-type]
    ),
    "completions": Route(
        "completions", "prompt", marks=_marks(b'"text"'), **CHAT,  # type: ignore[arg-type]
    ),
    "responses": Route(
        "responses", "input", responses.ResponsesEvents, responses.items_of, responses.options_of,
        exact=("ignore_eos",), marks=_marks(b'"delta"', b"event: response.output_text.delta"),
    ),
    "messages": Route(
        "messages", "messages", anthropic.MessagesEvents, anthropic.items_of, anthropic.options_of,
        exact=(), marks=_marks(b'"text"', b"event: content_block_delta"), has_system=True,
        no_call={"type": "none"},
    ),
    "embeddings": _pooled("embeddings", pooled.EmbeddingsEvents, pooled.input_body),
    "pooling": _pooled(
        "/pooling", pooled.PoolingEvents, pooled.input_body, scores_chats=True,
    ),
    "classify": _pooled(
        "/classify", pooled.ClassifyEvents, pooled.input_body, scores_chats=True,
    ),
    "score": _pooled("/score", pooled.ScoreEvents, pooled.score_body, least_texts=2),
    "rerank": _pooled("rerank", pooled.RerankEvents, pooled.rerank_body, least_texts=2),
}  # fmt: skip


def route_at(path: str) -> str:
    """Return the key of the route with a path."""
    return next(name for name, one in ROUTES.items() if one.path == path)
