"""The line: run.yaml, its stages, their keys, and running what is stale."""

from pathlib import Path

DEFAULT_RUNS = Path("runs")
"""Where runs keep their artifacts, below the current directory."""
