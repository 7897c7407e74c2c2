"""The routes that exist. A route is opened by one row; every other path answers 404."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """One path of vLLM's server, or of ours."""

    is_work: bool = False
    """It runs the model: a server that drains refuses it."""


ROUTES = {
    "/v1/chat/completions": Route(is_work=True),
    "/v1/completions": Route(is_work=True),
    "/v1/models": Route(),
    "/health": Route(),
    "/ready": Route(),
    "/metrics": Route(),
    "/version": Route(),
}
