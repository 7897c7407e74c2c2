"""The object of a kind among rendered objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def only(objects: Iterable[dict[str, Any]], kind: str) -> Any:
    """Return the object of a kind of which there is one."""
    (found,) = (item for item in objects if item["kind"] == kind)
    return found
