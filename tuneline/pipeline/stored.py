"""The artifacts of a run in object storage: `PLACE/<run name>/<directory of the artifact>`."""

from __future__ import annotations

from pathlib import Path

from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.errors import NotAnArtifactError, TamperedError
from tuneline.core.storage import list_artifacts, pull_artifact
from tuneline.pipeline.run_config import Run


def place_of(run: Run, artifact: Artifact, place: str) -> str:
    """Return the URL of an artifact of a run."""
    return f"{place.rstrip('/')}/{run.config.name}/{artifact.path.name}"


def pull_run(run: Run, place: str) -> dict[str, Path]:
    """Copy the artifacts of a run that are not here yet, and return all that are there, by name.

    Raises:
        NotAnArtifactError: There is none.
        TamperedError: A file differs from its manifest, or a name leaves the run's directory.
        ServerError: The store cannot be reached, refuses, or fails.
    """
    root = f"{place.rstrip('/')}/{run.config.name}"
    names = list_artifacts(root)
    if not names:
        raise NotAnArtifactError(
            f"{root}: holds no artifact", hint=f"Try: {run.command('push')} --to {place}"
        )
    for name in names:
        if name in (".", ".."):
            raise TamperedError(f"{root}: names the directory {name!r}")
        if (run.dir / name).exists():
            open_artifact(run.dir / name)
        else:
            pull_artifact(f"{root}/{name}", run.dir / name)
    return {name: run.dir / name for name in names}
