"""The environment of a server that records requests."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from serving.config import RecordingConfig
from serving.middleware.settings import RECORDING_VARIABLE, RecordingSettings
from tuneline.core.errors import ConfigError

DAY_S = 86_400.0


def recording_env(recording: RecordingConfig) -> dict[str, str]:
    """Make the folder and return the variable of a server that is a process of this machine.

    Raises:
        ConfigError: The folder cannot be made or written to.
    """
    folder = Path(recording.folder).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"serving.recording.folder: {folder}: {error.strerror}",
            hint="Try: --set serving.recording.folder=DIR, or --set serving.recording=null",
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"serving.recording.folder: {folder}: this user may not write there",
            hint="Try: --set serving.recording.folder=DIR, or --set serving.recording=null",
        )
    return recording_variable(recording, str(folder))


def recording_variable(recording: RecordingConfig, folder: str) -> dict[str, str]:
    """Return the variable, with the folder as the server sees it."""
    settings = RecordingSettings(
        folder=folder,
        share=recording.share,
        max_bytes=int(recording.max_gib * 2**30),
        keep_s=recording.keep_days * DAY_S,
    )
    return {RECORDING_VARIABLE: json.dumps(asdict(settings))}
