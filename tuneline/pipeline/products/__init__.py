"""The kinds of models that training methods make: one file each, and `table.py` with one row each.

A file says how the line judges, serves, proves and load-tests a model of its kind.
"""
