"""The PEFT methods that the merge knows: one module each, and a row of `table.py` for each."""
