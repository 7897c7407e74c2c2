"""The gates of a release: one function per gate, and one row each in `table.py`."""
