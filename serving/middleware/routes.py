"""The routes that exist. A route is opened by one row; every other path answers 404."""

from __future__ import annotations

from collections.abc import Collection
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


ROUTES = {
    "/v1/chat/completions": Route(is_work=True, names_model=True),
    "/v1/completions": Route(is_work=True, names_model=True),
    "/v1/models": Route(),
    "/v1/responses": Route(is_work=True, option="responses", names_model=True),
    "/v1/messages": Route(is_work=True, option="messages", names_model=True),
    "/v1/messages/count_tokens": Route(option="messages", names_model=True),
    "/tokenize": Route(needs_admin=True, option="tokenize", names_model=True),
    "/detokenize": Route(needs_admin=True, option="tokenize", names_model=True),
    "/v1/adapters": Route(needs_admin=True, option="adapters"),
    "/chat": Route(option="page"),
    "/health": Route(is_open=True),
    "/ready": Route(is_open=True),
    "/metrics": Route(is_open=True),
    "/version": Route(is_open=True),
}

MODELS = "/v1/models"
ADAPTERS = "/v1/adapters"
WITH_PARTS = (MODELS, ADAPTERS)
"""Paths that may have a part behind them which varies."""


def find_route(path: str, options: Collection[str]) -> tuple[str, Route] | None:
    """Return the row of a path and its name for metrics; None if the path does not exist."""
    name = path
    for known in WITH_PARTS:
        if path.startswith(f"{known}/") and len(path) > len(known) + 1:
            name = known
    route = ROUTES.get(name)
    if route is None or (route.option is not None and route.option not in options):
        return None
    return name, route
