"""Texts and values in messages, cut to a length."""

from __future__ import annotations


def shorten(text: str, most: int) -> str:
    """Return a text whole, or its beginning and an ellipsis: at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
