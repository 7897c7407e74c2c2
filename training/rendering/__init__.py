"""Rows to token ids and masks."""
