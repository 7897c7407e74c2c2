"""The types of a chat."""

from __future__ import annotations

Message = dict[str, str]
"""`role` and `content`."""

Messages = list[Message]
"""A conversation in order."""
