"""Studies of several runs: search, sweep, compare, cross-check."""
