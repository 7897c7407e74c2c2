"""The facts of a report: the release, the artifacts that it names, and the artifacts that lack."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.release import Release, read_release
from tuneline.pipeline.plan import plan_stage
from tuneline.pipeline.released import changed_keys, last_of, open_releases
from tuneline.pipeline.run_config import Run, resolve_base
from tuneline.pipeline.stage import Made
from tuneline.pipeline.stages import stages

LIMITS = ("release",)
"""The section of run.yaml that no artifact records."""


@dataclass(frozen=True)
class Facts:
    """The source of a report.

    Attributes:
        name: The name of the run.
        up: The command line that runs the line.
        release: The release; None for a run that has none.
        made: The artifacts by their stage, in the order of the line.
        absent: The stages without an artifact, each with the reason.
        config: The resolved run.yaml.
        outdated: Why the last release of these artifacts does not count; empty without such one.
    """

    name: str
    up: str
    release: Release | None
    made: dict[str, Artifact]
    absent: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)
    outdated: str = ""

    def of_kind(self, kind: str) -> list[tuple[str, Artifact]]:
        """Return the stages of a kind with their artifacts."""
        return [(stage, one) for stage, one in self.made.items() if one.kind == kind]

    def read(self, stage: str, file: str) -> Any:
        """Return a JSON document of a stage's artifact."""
        return json.loads((self.made[stage].path / file).read_text(encoding="utf-8"))

    def again(self, command: str) -> str:
        """Return the command line of another command for the same run."""
        return self.up.replace("tuneline up", f"tuneline {command}", 1)

    def sources(self, *stages: str) -> tuple[tuple[str, str], ...]:
        """Return directory and short digest of the artifacts of these stages."""
        found = (self.made[stage] for stage in stages if stage in self.made)
        return tuple((one.path.name, one.short_digest) for one in found)


def facts_of_folder(folder: Path, artifacts: Path | None = None) -> Facts:
    """Return the facts of a release's folder.

    Args:
        folder: The folder with `release.json`.
        artifacts: The directory of the run's artifacts; the folder's parent by default.

    Raises:
        ArtifactError: The folder does not have the release.
    """
    release = read_release(folder)
    made, absent = {}, {}
    for link in release.chain:
        path = (folder.absolute().parent if artifacts is None else artifacts) / link.directory
        try:
            artifact = open_artifact(path, kind=link.kind)
        except ArtifactError as error:
            absent[link.stage] = error.message
            continue
        if artifact.digest == link.digest:
            made[link.stage] = artifact
        else:
            absent[link.stage] = f"{path}: is another artifact than the release names"
    up = release.reproduce.command
    return Facts(release.name, up, release, made, absent, release.config)


def facts_of_run(run: Run) -> Facts:
    """Return the facts of a run, with its last release.

    A release counts if it is about the run's artifacts, judged by the limits of run.yaml as it is.

    Raises:
        MissingError: The base model is not here.
        DataError: A data file is missing.
    """
    base = resolve_base(run, download=False)
    made: Made = {}
    absent = {}
    for stage in stages(run):
        try:
            entry = plan_stage(run, stage, base, made)
            # An INVALID measurement is stale, and it is shown all the same.
            if entry.path is not None and entry.path.exists():
                made[stage.name] = open_artifact(entry.path, kind=stage.kind)
            else:
                absent[stage.name] = entry.reason
        except ArtifactError as error:
            absent[stage.name] = error.message
    config = run.config.model_dump(mode="json")
    release, outdated = _last_release(run.dir, made, config)
    return Facts(run.config.name, run.command("up"), release, made, absent, config, outdated)


def _last_release(
    run_dir: Path, made: dict[str, Artifact], config: dict[str, Any]
) -> tuple[Release | None, str]:
    """Return the last release of exactly these artifacts and this configuration.

    Without one, return why the last release of these artifacts does not count.
    """
    about = {stage: artifact.digest for stage, artifact in made.items()}
    # A release that is damaged or of another version says nothing about the run.
    found, _ = open_releases(run_dir)
    same = [pair for pair in found if {one.stage: one.digest for one in pair[1].chain} == about]
    # The artifacts have every other setting that decides a figure in their keys.
    judged = [pair for pair in same if not changed_keys(pair[1], config, LIMITS)]
    if judged:
        return last_of(run_dir, judged)[1], ""
    if not same:
        return None, ""
    artifact, release = last_of(run_dir, same)
    keys = ", ".join(changed_keys(release, config, LIMITS))
    return None, f"{artifact.path.name} was judged with other values of {keys}."
