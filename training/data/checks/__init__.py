"""Checks of rows: one file per check, and one row of `table.CHECKS`."""
