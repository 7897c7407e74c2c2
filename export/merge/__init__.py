"""Merging adapters into a base, tensor by tensor."""
