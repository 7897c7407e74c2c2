"""Where an OpenAI-compatible server is, and under which name it serves the model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Endpoint:
    """`url` ends in `/v1`, as the `openai` client's `base_url` does. The key is never shown."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
