"""When requests are sent: one module per arrival pattern, and a row of `table.py` for each."""
