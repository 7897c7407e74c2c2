"""Pages of other origins, which vLLM's `--allowed-origins` lets in.

vLLM's own layer answers for them. Two things are outside that layer: a browser asks before it sends
a key, and answers of the middleware need the header too. Without the header a page cannot tell 429
from a broken network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.middleware.asgi import Header, Scope, header
from serving.middleware.chat_page import PAGE_HEADER

ALLOW_ORIGIN = b"access-control-allow-origin"
EXPOSE: Header = (
    b"access-control-expose-headers",
    b"retry-after, x-request-id, x-tuneline-artifact, x-tuneline-engine, x-tuneline-records",
)
"""The headers of an answer that a page may read, besides those that a browser always shows."""


@dataclass(frozen=True)
class Origins:
    """The origins that vLLM lets in."""

    allowed: Sequence[str] = ()
    credentials: bool = False

    def headers(self, scope: Scope) -> list[Header]:
        """Return the headers with which a page of an allowed origin may read an answer."""
        origin = header(scope, b"origin") if self.allowed else None
        if origin is None or not {"*", origin} & set(self.allowed):
            return []
        if not self.credentials and "*" in self.allowed:
            return [(ALLOW_ORIGIN, b"*")]
        found = [(ALLOW_ORIGIN, origin.encode("latin-1")), (b"vary", b"Origin")]
        return (
            [*found, (b"access-control-allow-credentials", b"true")] if self.credentials else found
        )

    def asks_before(self, scope: Scope) -> bool:
        """Return whether a browser asks what it may send. It does not send a key yet.

        The chat page's own header stays closed to pages of other origins.
        """
        if not self.allowed or scope["method"] != "OPTIONS" or header(scope, b"origin") is None:
            return False
        asked = header(scope, b"access-control-request-headers") or ""
        names = {name.strip().lower() for name in asked.split(",")}
        is_asked = header(scope, b"access-control-request-method") is not None
        return is_asked and PAGE_HEADER.decode() not in names


def allowed_origins(app: Any) -> Origins:
    """Return the origins that vLLM's application was started with."""
    args = getattr(getattr(app, "state", None), "args", None)
    allowed = getattr(args, "allowed_origins", None) or ()
    return Origins(tuple(allowed), bool(getattr(args, "allow_credentials", False)))
