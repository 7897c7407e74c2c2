"""The headers that go with a refusal."""

from __future__ import annotations

from serving.middleware.asgi import Header, retry_after
from serving.middleware.body import Refusal
from serving.middleware.chat_page import challenge
from serving.middleware.routes import Route


def refusal_headers(refusal: Refusal, name: str, route: Route) -> list[Header]:
    """Return the headers that a status asks for.

    Args:
        name: The route's name, as metrics have it.
    """
    if refusal.retry_after_s is not None:
        return [retry_after(refusal.retry_after_s)]
    if refusal.status == 401:
        return [challenge(name)]
    return [(b"allow", ", ".join(route.methods).encode())] if refusal.status == 405 else []
