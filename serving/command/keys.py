"""The file of named keys: `tuneline keys add`, `list` and `remove`.

The middleware reads the file; this module writes it. Only a key's digest is in the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.middleware.key_file import Key, read_keys
from tuneline.core.disk import replace_file
from tuneline.core.errors import ConfigError

OWNER_ONLY = 0o600
NO_KEY = "# No key is valid.\n"
"""A file without a byte would count as half-written, and the earlier keys would stay."""
_HINT = "Try: tuneline keys add NAME --file KEYS.toml"


def readable_keys(path: Path) -> Path:
    """Return the absolute path of a file that has keys.

    Raises:
        ConfigError: The file is missing, broken or has no key.
    """
    if not list_keys(path):
        raise ConfigError(f"{path}: has no key; expected at least one", hint=_HINT)
    return path.resolve()


def list_keys(path: Path) -> list[Key]:
    """Return the keys of a file.

    Raises:
        ConfigError: The file is missing or broken.
    """
    try:
        return read_keys(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected the named keys", hint=_HINT) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; expected the file of named keys"
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{path}: is not a file of keys: {error}",
            hint="Mend the file, or name a new one: tuneline keys add NAME --file NEW.toml",
        ) from None


def add_key(path: Path, name: str, limits: Mapping[str, Any]) -> str:
    """Add a new key to a file, which is made if it does not exist, and return the key.

    The key is shown once; the file has its digest.

    Args:
        limits: Fields of `serving.middleware.key_file.Key`; None and False are left out.

    Raises:
        ConfigError: The name is taken or not a name, or a limit is not a number above 0.
        DiskFullError, ArtifactError: The file cannot be written.
    """
    keys = list_keys(path) if path.exists() else []
    if name in {key.name for key in keys}:
        raise ConfigError(
            f"{path}: has a key {name!r} already",
            hint=f"Try: tuneline keys remove {name} --file {path}   (or another name)",
        )
    for field, value in limits.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"key {name!r}: {field} is {value}; expected a number above 0")
    presented = f"tl-{secrets.token_urlsafe(24)}"
    fields = {"sha256": hashlib.sha256(presented.encode()).hexdigest()}
    # 0 equals False, and a key without its limit would have none.
    fields |= {
        field: value for field, value in limits.items() if value is not None and value is not False
    }
    text = path.read_text(encoding="utf-8") if keys else ""
    text = f"{text.rstrip()}\n\n{_table(name, fields)}".lstrip()
    try:
        read_keys(text)
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"key {name!r}: {error}") from None
    replace_file(path, text, mode=OWNER_ONLY)
    return presented


def remove_key(path: Path, name: str) -> None:
    """Remove a key from a file. A running server refuses it from the next second on.

    Raises:
        ConfigError: The file has no such key.
    """
    keys = list_keys(path)
    if name not in {key.name for key in keys}:
        names = ", ".join(key.name for key in keys) or "none"
        raise ConfigError(f"{path}: has no key {name!r}; its keys: {names}")
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    left = [_table(key, table) for key, table in tables.items() if key != name]
    replace_file(path, "\n".join(left) or NO_KEY, mode=OWNER_ONLY)


def _table(name: str, fields: Mapping[str, Any]) -> str:
    # A JSON text, number, list or boolean is the same in TOML.
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join([f"[{json.dumps(name)}]", *lines, ""])
