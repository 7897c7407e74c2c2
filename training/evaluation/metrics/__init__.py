"""Metrics of answers: one file each, and one row of the table in `table`."""
