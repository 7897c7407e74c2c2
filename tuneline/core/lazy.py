"""A package's public face, whose functions are imported when they are first used.

A room's `__init__.py` names its public functions. Importing the room then costs nothing: torch is
imported when a function that needs it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_face(package: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module `__getattr__` that imports a public name on first use (PEP 562).

    Args:
        package: The package's `__name__`.
        where: For each public name, `module:attribute`.
    """

    def find(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = where[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    return find
