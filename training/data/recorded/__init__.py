"""Recorded requests of a server, as rows of training data."""
