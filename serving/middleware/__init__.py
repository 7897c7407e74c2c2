"""Tuneline's middleware inside vLLM's server."""

from serving.middleware.app import TunelineMiddleware

__all__ = ["TunelineMiddleware"]
