"""Folders of a run that no configuration of it leads to any more."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from export import FORMS
from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.bounded_yaml import load_yaml
from tuneline.core.disk import cannot_write
from tuneline.core.errors import NotAnArtifactError
from tuneline.core.files import MANIFEST
from tuneline.core.release import RELEASE_KIND
from tuneline.pipeline.keys import KEY_LENGTH
from tuneline.pipeline.plan import Planned, plan
from tuneline.pipeline.run_config import Run, load_run
from tuneline.pipeline.stage import STAGE_NAMES
from tuneline.pipeline.up import REMOVED, lock_run

LINKED = ".linked"
"""How the name of a folder ends into which a search links an artifact."""
NAME = re.compile(rf"\.?((.+)-[0-9a-f]{{{KEY_LENGTH}}})(\.partial|\.work|{re.escape(LINKED)})?")
"""`<stage>-<key>` of an artifact, or the hidden folders of a stage that writes it."""
STAGES = {*STAGE_NAMES, *FORMS, *(f"parity-{name}" for name in FORMS)}
EARLIER = "made by another configuration, or by an earlier Tuneline"
UNFINISHED = "left by a process that was killed"


@dataclass(frozen=True)
class Leftover:
    """A folder that can be removed."""

    path: Path
    size_bytes: int
    reason: str


@dataclass(frozen=True)
class Leftovers:
    """The folders that can be removed from a run's directory.

    Attributes:
        found: The folders.
        undecided: Stages that wait for other stages, so that nobody knows which of their folders
            belong to the run. These folders are kept.
    """

    found: list[Leftover]
    undecided: list[str]


def find_leftovers(run: Run) -> Leftovers:
    """Return the folders in a run's directory that nothing needs.

    Kept are the current artifacts, releases, all that these were made from, and the unfinished work
    that a stage would go on with; likewise those of every other run file next to the run's with the
    same name, such as `run.best.yaml`.

    Raises:
        ConfigError: Such a file cannot be read.
        MissingError: The base model is not here.
        DataError: A data file is missing.
    """
    plans = [plan(one) for one in (run, *_siblings(run))]
    planned = [entry for entries in plans for entry in entries]
    waiting = {entry.stage.name for entry in planned if entry.state == "waiting"}
    artifacts = {path.name: artifact for path, artifact in _artifacts(run.dir)}
    needed = _needed(artifacts, planned)
    found, undecided = [], set()
    for path in sorted(run.dir.glob("*")):
        match = NAME.fullmatch(path.name)
        if match is None or match[2] not in STAGES or not path.is_dir():
            continue
        if match[1] in needed and match[3] != LINKED:
            continue
        if match[2] in waiting and match[3] != LINKED:
            undecided.add(match[2])
        elif match[3] or path.name in artifacts:
            reason = UNFINISHED if match[3] else EARLIER
            found.append(Leftover(path, _size_bytes(path), reason))
    return Leftovers(found, sorted(undecided))


def remove_leftovers(run: Run, found: Sequence[Leftover]) -> None:
    """Remove folders of a run; a kill leaves none of them half.

    Raises:
        ArtifactError: Another process works in the run's directory, or a folder cannot be removed.
    """
    with lock_run(run):
        for one in found:
            hidden = one.path.with_name(REMOVED + one.path.name.lstrip("."))
            try:
                one.path.rename(hidden)
                shutil.rmtree(hidden)
            except OSError as error:
                raise cannot_write(one.path, error) from error


def _siblings(run: Run) -> Iterator[Run]:
    """Yield the other run files of the run's directory."""
    for path in sorted(run.path.parent.glob("*.y*ml")):
        if path.resolve() == run.path.resolve():
            continue
        try:
            values = load_yaml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(values, dict) and values.get("name") == run.config.name:
            yield load_run(path, runs_dir=run.dir.parent)


def _artifacts(directory: Path) -> Iterator[tuple[Path, Artifact]]:
    for manifest in sorted(directory.glob(f"*/{MANIFEST}")):
        try:
            yield manifest.parent, open_artifact(manifest.parent, check_sizes=False)
        except NotAnArtifactError:
            continue


def _needed(artifacts: Mapping[str, Artifact], planned: Sequence[Planned]) -> set[str]:
    """Return the names of the artifacts that the plans and the releases lead to."""
    names = {entry.path.name for entry in planned if entry.path is not None}
    names |= {name for name, one in artifacts.items() if one.kind == RELEASE_KIND}
    by_digest: dict[str, set[str]] = {}
    for name, artifact in artifacts.items():
        by_digest.setdefault(artifact.digest, set()).add(name)
    needed: set[str] = set()
    while names:
        needed |= names
        inputs = (
            one for name in names & artifacts.keys() for one in artifacts[name].manifest.inputs
        )
        names = {name for one in inputs for name in by_digest.get(one.digest, ())} - needed
    return needed


def _size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
