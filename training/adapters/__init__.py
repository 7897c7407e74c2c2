"""Adapters and their companion files."""
