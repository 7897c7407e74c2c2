"""Conversations as the unit of arrival: a reader per format, and a row of `table.py` for each."""
