"""The routes that exist. A route is opened by one row; every other path answers 404."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """One path of vLLM's server, or of ours."""

    is_work: bool = False
    """It runs the model: it is counted, limited, and refused by a server that drains."""
    is_open: bool = False
    """It answers without a key."""
    needs_admin: bool = False
    """It answers an admin key only."""
    option: str | None = None
    """The value of `serving.routes` that opens it; None if it is always open."""
    names_model: bool = False
    """Its body names a model."""
    is_sent: bool = False
    """It takes a body although it names no model."""
    pools: bool | None = None
    """Whether it asks for a vector or a score in place of text; None if every server has it."""
    lists: tuple[str, ...] = ()
    """Fields of its body of which each may be a list of prompts."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it takes; the routes of adapters judge theirs by the path."""
        return ("POST",) if self.names_model or self.is_sent else ("GET", "HEAD")


PAIRS = ("documents", "items", "queries", "text_1", "text_2", "data_1", "data_2")
"""Fields of which two hold the two sides of pairs."""

RERANK = Route(is_work=True, option="score", names_model=True, pools=True, lists=PAIRS)

ROUTES = {
    "/v1/chat/completions": Route(is_work=True, names_model=True, pools=False),
    "/v1/completions": Route(is_work=True, names_model=True, pools=False, lists=("prompt",)),
    "/v1/models": Route(),
    "/v1/responses": Route(is_work=True, option="responses", names_model=True, pools=False),
    "/v1/messages": Route(is_work=True, option="messages", names_model=True, pools=False),
    "/v1/messages/count_tokens": Route(option="messages", names_model=True, pools=False),
    "/v1/embeddings": Route(
        is_work=True, option="embeddings", names_model=True, pools=True, lists=("input",)
    ),
    "/pooling": Route(
        is_work=True, option="pooling", names_model=True, pools=True, lists=("input",)
    ),
    "/classify": Route(
        is_work=True, option="classify", names_model=True, pools=True, lists=("input",)
    ),
    "/score": Route(is_work=True, option="score", names_model=True, pools=True, lists=PAIRS),
    "/rerank": RERANK,
    "/v1/rerank": RERANK,  # Jina's clients and LiteLLM
    "/v2/rerank": RERANK,  # Cohere's client
    "/tokenize": Route(needs_admin=True, option="tokenize", names_model=True),
    "/detokenize": Route(needs_admin=True, option="tokenize", names_model=True),
    "/v1/adapters": Route(needs_admin=True, option="adapters"),
    "/v1/feedback": Route(option="feedback", is_sent=True),
    "/chat": Route(option="page"),
    "/health": Route(is_open=True),
    "/ready": Route(is_open=True),
    "/metrics": Route(is_open=True),
    "/version": Route(is_open=True),
}

SECTIONS = {"adapters": "adapters", "feedback": "recording"}
"""The section of `serving` that opens a route, for each option that is not in `serving.routes`."""
MODELS = "/v1/models"
ADAPTERS = "/v1/adapters"
WITH_PARTS = (MODELS, ADAPTERS)
"""Paths that may have a part behind them which varies."""


def open_routes(options: Collection[str]) -> dict[str, Route]:
    """Return the rows that a server has, by path.

    Args:
        options: The values of `serving.routes`. A server with a route of vectors or scores has no
            route of text: vLLM loads a model for one of the two.
    """
    pools = any(route.pools for route in ROUTES.values() if route.option in options)
    return {
        path: route
        for path, route in ROUTES.items()
        if route.option is None or route.option in options
        if route.pools is None or route.pools == pools
    }


def find_route(path: str, routes: Mapping[str, Route]) -> tuple[str, Route] | None:
    """Return the row of a path and its name for metrics; None if the path does not exist."""
    name = path
    for known in WITH_PARTS:
        if path.startswith(f"{known}/") and len(path) > len(known) + 1:
            name = known
    route = routes.get(name)
    return None if route is None else (name, route)


def why_unknown(path: str, routes: Mapping[str, Route]) -> str:
    """Return what may be wrong with a path that a server does not have; "" if nothing is known."""
    if path.startswith("/v1/v1/") or f"/v1{path}" in routes:
        return "; check the client's base URL: OpenAI's ends in /v1, Anthropic's does not"
    route = ROUTES.get(path)
    if route is None:
        return ""
    if route.option is None:
        return "; this server computes vectors or scores in place of text"
    if route.option in SECTIONS:
        return f"; serving.{SECTIONS[route.option]} opens it"
    return f"; serving.routes: [{route.option}] opens it"


def open_paths(options: Collection[str]) -> list[str]:
    """Return the paths outside `/v1` that these values of `serving.routes` open to every key."""
    return [
        path
        for path, route in ROUTES.items()
        if route.option in options and not route.needs_admin and not path.startswith("/v1/")
    ]
