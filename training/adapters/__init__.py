"""Adapters and the files beside them."""
