"""Keys and headers of requests that hold a secret, or that only the load test sets. Pure."""

from __future__ import annotations

import re
from typing import Any

OUR_HEADERS = {
    "host", "user-agent", "accept", "accept-encoding", "content-type", "content-length",
    "connection", "transfer-encoding", "x-request-id",
}  # fmt: skip
_is_header = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+").fullmatch
_is_secret = re.compile(
    r"(?i)(?:api[-_]?key|subscription[-_]?key|secret|passw(?:or)?d|authorization|credentials?|cookie"
    r"|(?:access|auth|bearer|refresh|session|hf)[-_]?token)$"
).search
"""`prompt_cache_key` and `stop_token` hold no secret."""


def header_problem(headers: dict[str, str]) -> str | None:
    """Return why a header cannot be sent."""
    for name, value in headers.items():
        if name.lower() in OUR_HEADERS:
            return f"headers may not set {name}: the load test sets it"
        if not _is_header(name):
            return f"headers: {name!r} is not the name of a header"
        if not value.strip() or not all(" " <= character <= "~" for character in value):
            return f"headers.{name}: the value is not printable ASCII"
        if _is_secret(name) and not value.startswith("$"):
            return (
                f"headers.{name}: the report would show it; expected the name of an environment "
                "variable, such as $GATEWAY_KEY"
            )
    return None


def secret_key(body: Any) -> str | None:
    """Return the first key of a body, with those around it, that holds a secret."""
    items = enumerate(body) if isinstance(body, list) else body.items()
    for key, value in items:
        if isinstance(value, str) and _is_secret(str(key)):
            return str(key)
        if isinstance(value, dict | list) and (inner := secret_key(value)):
            return f"{key}.{inner}"
    return None
