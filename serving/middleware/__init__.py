"""What Tuneline adds inside vLLM's server."""

from serving.middleware.app import TunelineMiddleware

__all__ = ["TunelineMiddleware"]
