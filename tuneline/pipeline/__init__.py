"""The line: run.yaml, its stages, their keys, and running what is stale."""
