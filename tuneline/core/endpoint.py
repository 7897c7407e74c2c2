"""Where an OpenAI-compatible server is, and under which name it serves the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Endpoint:
    """`url` ends in `/v1`, as the `openai` client's `base_url` does. The key is never shown."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def is_local(self) -> bool:
        """Whether it is a server of this machine."""
        return urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")
