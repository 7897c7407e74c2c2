"""The file of named keys. TOML, one table per key:

    [batch]
    sha256 = "<64 hexadecimal digits>"
    requests_per_minute = 600

A key made by `tuneline keys add` has 192 random bits, so its digest cannot be turned back.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, fields
from typing import Any

DEFAULT_NAME = "default"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""Names of keys, and of adapters at run time."""
NAME_FORM = "a letter or digit, then at most 62 letters, digits, '_', '.', '-'"
MOST_PRIORITY = 1_000_000
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """One key; None stands for no limit."""

    name: str
    sha256: str = field(repr=False)
    admin: bool = False
    """May use the admin routes."""
    models: tuple[str, ...] | None = None
    """Names that requests may ask for; None allows all names."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Prompt and answer together."""
    max_concurrency: int | None = None
    priority: int | None = None
    """Of waiting requests, the lowest number is computed first; None is 0."""


def read_keys(text: str) -> list[Key]:
    """Return the keys of a file.

    Raises:
        ValueError: The text is not TOML, or a table is not a key. The message never holds a digest.
    """
    tables = tomllib.loads(text)
    keys = [_key(name, table) for name, table in tables.items()]
    if len({key.sha256 for key in keys}) != len(keys):
        raise ValueError("two names have the same sha256")
    return keys


def _key(name: str, table: Any) -> Key:
    if not NAME.fullmatch(name) or name == DEFAULT_NAME:
        raise ValueError(f"[{name}]: expected {NAME_FORM}; not {DEFAULT_NAME!r}")
    if not isinstance(table, dict):
        raise ValueError(f"{name}: expected a table, [{name}]")
    known = {entry.name for entry in fields(Key)} - {"name"}
    if unknown := sorted(set(table) - known):
        raise ValueError(
            f"[{name}]: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    if not isinstance(table.get("sha256"), str) or not _DIGEST.fullmatch(table["sha256"]):
        raise ValueError(f"[{name}]: sha256 is not 64 hexadecimal digits in lower case")
    for limit in ("requests_per_minute", "tokens_per_minute", "max_concurrency"):
        value = table.get(limit, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"[{name}]: {limit} is {value!r}; expected a number above 0")
    priority = table.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > MOST_PRIORITY:
        raise ValueError(
            f"[{name}]: priority is {priority!r}; expected a whole number of at most "
            f"{MOST_PRIORITY} either way"
        )
    if not isinstance(table.get("admin", False), bool):
        raise ValueError(f"[{name}]: admin is {table['admin']!r}; expected true or false")
    models = table.get("models")
    if models is not None and not (
        isinstance(models, list) and all(isinstance(model, str) and model for model in models)
    ):
        raise ValueError(f"[{name}]: models is {models!r}; expected a list of names")
    return Key(name, **{**table, "models": None if models is None else tuple(models)})
