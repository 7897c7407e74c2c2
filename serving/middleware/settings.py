"""The middleware's settings: a JSON document in `TUNELINE_SETTINGS`, and one of what is recorded.

`serving.command` writes them. A container without the variables has the defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

VARIABLE = "TUNELINE_SETTINGS"
RECORDING_VARIABLE = "TUNELINE_RECORDING"
"""Without it nothing is recorded."""


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


@dataclass(frozen=True)
class RecordingSettings:
    """Where requests are recorded, how many, and how long the records are kept.

    Attributes:
        share: Of the requests without `store`, from 0 to 1.
        max_bytes: Of the folder.
        keep_s: How long a file is kept in which nothing is written.
    """

    folder: str
    share: float
    max_bytes: int
    keep_s: float


def read_recording(environ: Mapping[str, str]) -> RecordingSettings | None:
    """Return the settings of a server that records requests; None for every other server.

    Raises:
        ValueError, TypeError: The variable is not such a document.
    """
    text = environ.get(RECORDING_VARIABLE)
    return RecordingSettings(**json.loads(text)) if text else None
