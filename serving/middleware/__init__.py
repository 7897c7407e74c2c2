"""Tuneline's middleware inside vLLM's server."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.middleware.app import TunelineMiddleware

__all__ = ["TunelineMiddleware"]


def __getattr__(name: str) -> Any:
    """Import the middleware when vLLM asks for it; its settings are read without prometheus-client.

    An image has this package and nothing else of Tuneline's.
    """
    if name != "TunelineMiddleware":
        raise AttributeError(name)
    from serving.middleware.app import TunelineMiddleware

    return TunelineMiddleware
