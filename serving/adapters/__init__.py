"""Adapters that a live server loads, proves and names, without a restart."""
