"""The middleware's settings: one JSON document in `TUNELINE_SETTINGS`.

`serving.command` writes it. A container without the variable has the defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

VARIABLE = "TUNELINE_SETTINGS"


@dataclass(frozen=True)
class Settings:
    """Limits of every request, and of the server's end. Sizes in bytes, times in seconds."""

    max_body_bytes: int = 8 * 1024 * 1024
    header_timeout_s: float = 30.0
    body_timeout_s: float = 30.0
    send_timeout_s: float = 60.0
    max_n: int = 16
    max_tokens: int | None = None
    max_in_flight: int = 1024
    stall_after_s: float = 12.0
    shutdown_timeout_s: float = 30.0
    routes: tuple[str, ...] = ()
    log_format: str = "text"
    """`text` or `json`."""
    exits_at_once: bool = True
    """End the process as soon as a drain has nothing left to wait for."""


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings.

    Raises:
        ValueError: The variable is not such a document. A server with half of its limits must not
            start.
    """
    text = environ.get(VARIABLE)
    if not text:
        return Settings()
    values = json.loads(text)
    unknown = set(values) - {field.name for field in fields(Settings)}
    if unknown:
        raise ValueError(f"{VARIABLE}: unknown settings {', '.join(sorted(unknown))}")
    return Settings(**{**values, "routes": tuple(values.get("routes", ()))})
