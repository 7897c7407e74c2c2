"""A tracker: a program that shows the figures of a training in progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRACKING = "tracking"
"""The directory next to an adapter with the figures of its training. They are not files of the
artifact: speed and memory differ between equal runs, whose artifacts have equal digests."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is told about.

    Attributes:
        name: The names of the run and of the future artifact.
        folder: The directory for the tracker's own files; it stays after the run.
        settings: The `training` section, the base model and the digest of the dataset.
        first_step: The step that the run continues after; 0 for a new run.
        port: The port of the Prometheus endpoint, if the run has one.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    first_step: int
    port: int | None = None

    def known_id(self, file: Path) -> str | None:
        """Return the id in a file that an interrupted training left; None for a new run."""
        # A kill or a full disk may leave the file empty.
        return (file.read_text() or None) if self.first_step and file.is_file() else None


@dataclass(frozen=True)
class Tracker:
    """The two calls that a tracker answers; both may raise anything and take any time."""

    log: Callable[[int, Mapping[str, float]], None]
    """`(step, figures)`."""
    finish: Callable[[bool], None]
    """`(failed)`: the training ended with an error or was stopped."""
