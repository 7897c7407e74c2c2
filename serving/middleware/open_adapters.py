"""Adapters at run time, if the server has them: they need more of Tuneline than the middleware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.middleware.adapters import Adapters
    from serving.middleware.loaded import Call


def open_adapters(environ: Mapping[str, str], call: Call) -> Adapters | None:
    """Return the adapters of this process, or None for a server without them.

    Raises:
        TunelineError: The list is broken, or another server uses it; a server must not start.
        ValueError: The settings are not such a document.
    """
    if not environ.get("TUNELINE_ADAPTERS"):
        return None
    from serving.adapters.settings import read_settings
    from serving.middleware.adapters import Adapters

    settings = read_settings(environ)
    return None if settings is None else Adapters(settings, call)
