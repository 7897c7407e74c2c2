"""Tuneline: from a data file to a proven, load-tested OpenAI-compatible endpoint."""

__version__ = "0.1.0"
