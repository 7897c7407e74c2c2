"""The conversations that a form calibrates on: of a file, or of a dataset's training rows."""

from __future__ import annotations

from pathlib import Path

from export import CalibrationData
from training import dataset_rows, read_rows
from tuneline.core.artifact import Artifact, file_input, open_artifact
from tuneline.core.dataset import TRAIN_FILE
from tuneline.core.errors import ConfigError


def calibration_of(dataset: Artifact) -> CalibrationData:
    """Return the training rows of a dataset as conversations."""
    rows = dataset_rows(dataset, TRAIN_FILE)
    return CalibrationData([row.messages for row in rows], dataset.as_input("data"))


def read_calibration(path: Path) -> CalibrationData:
    """Return the conversations of a data file, or of the dataset artifact in a folder.

    Raises:
        ConfigError: There is no such file.
        DataError, ArtifactError: The file or the folder cannot be read.
    """
    if path.is_dir():
        return calibration_of(open_artifact(path, kind="dataset"))
    if not path.is_file():
        raise ConfigError(
            f"--data {path}: no such file; expected training rows or a dataset artifact"
        )
    return CalibrationData([row.messages for row in read_rows(path)], file_input("data", path))
