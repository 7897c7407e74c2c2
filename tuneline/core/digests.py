"""Digests as names and messages show them."""

from __future__ import annotations

SHORT_LENGTH = 12
"""Hexadecimal digits. A Kubernetes label, which may hold a short digest, has at most 63."""


def short_digest(digest: str) -> str:
    """Return the first twelve hexadecimal digits of `sha256:…`."""
    return digest.removeprefix("sha256:")[:SHORT_LENGTH]
