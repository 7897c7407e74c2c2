"""`tuneline verify RELEASE_DIR`: content, chain and signature of a release, anywhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.core.artifact import (
    MANIFEST,
    Artifact,
    FileEntry,
    file_sha256,
    open_artifact,
    verify_artifact,
)
from tuneline.core.digests import short_digest
from tuneline.core.errors import TamperedError
from tuneline.core.files import difference_lines
from tuneline.core.release import (
    BOM_FILE,
    MODEL_SIGNATURE,
    RELEASE_KIND,
    RELEASE_SIGNATURE,
    STATEMENT_FILE,
    Release,
    read_release,
)
from tuneline.release.sign import Trust, check_signature
from tuneline.release.statement import statement_of

NOT_ARTIFACTS = ("file", "files", "value", "forgetting-suite", "peft-adapter")
"""Kinds of inputs that no stage makes, besides the base model."""


@dataclass(frozen=True)
class Verified:
    """The result of a verification.

    Attributes:
        artifact: The release.
        release: Its document.
        model: The model whose files were compared; None if none was given or found.
        num_links: Artifacts of the chain that are next to the release and were compared.
        is_trusted: Whether a signature was checked.
    """

    artifact: Artifact
    release: Release
    model: Path | None
    num_links: int
    is_trusted: bool


def verify_release(
    path: Path, *, model: Path | None = None, trust: Trust | None = None
) -> Verified:
    """Check that a release is what its makers wrote, and that a model is the released one.

    Args:
        path: The directory of the release.
        model: A copy of the model; the one next to the release if not given.
        trust: Whose signature is required; without it, signatures are not read.

    Raises:
        TamperedError: A file was changed, added, removed or renamed, the chain does not close, or
            the files contradict one another; the message names each.
        ArtifactError: It is not a release, is not signed, or is signed by another key.
    """
    artifact = open_artifact(path, kind=RELEASE_KIND, check_sizes=False)
    verify_artifact(artifact)
    release = read_release(path)
    _check_agreement(artifact, release)
    num_links = _check_links(path.absolute().parent, release)
    copy = model or _neighbour(path, release)
    if copy is not None:
        _check_model(copy, release)
    if trust:
        check_signature(trust, path, path / RELEASE_SIGNATURE)
        if copy is not None:
            check_signature(trust, copy, path / MODEL_SIGNATURE)
    return Verified(artifact, release, copy, num_links, bool(trust))


def _check_agreement(artifact: Artifact, release: Release) -> None:
    """Check that the files of a release say the same, and that the chain closes."""
    problems = []
    statement = _read_json(artifact.path / STATEMENT_FILE)
    if statement != statement_of(release):
        problems.append(f"{STATEMENT_FILE}: is about another release than release.json")
    bom = _read_json(artifact.path / BOM_FILE)
    try:
        named = {entry["content"] for entry in bom["metadata"]["component"]["hashes"]}
    except (KeyError, TypeError):
        named = set()
    if named != {release.model.digest.removeprefix("sha256:")}:
        problems.append(f"{BOM_FILE}: is about another model than release.json")
    recorded = [(entry.role, entry.digest) for entry in artifact.manifest.inputs]
    if recorded != [(link.stage, link.digest) for link in release.chain]:
        problems.append(f"{MANIFEST}: names other inputs than the chain of release.json")
    problems += _open_ends(release)
    _raise(artifact.path, problems)


def _read_json(path: Path) -> Any:
    """Return the JSON value of a release's file.

    Raises:
        TamperedError: There is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise TamperedError(
            f"{path}: is missing or is not JSON; expected a file of a release",
            hint="Fetch the release again, or release again: tuneline release RUN.yaml",
        ) from None


def _open_ends(release: Release) -> list[str]:
    """Return the inputs of the chain that no earlier artifact, file or base model has."""
    known = {release.base.digest}
    problems = []
    for link in release.chain:
        problems += [
            f"chain: {link.stage} was made from {entry.role} {short_digest(entry.digest)}, which "
            "is not in the chain"
            for entry in link.inputs
            if entry.digest not in known and entry.kind not in NOT_ARTIFACTS
        ]
        known.add(link.digest)
    if release.model.digest not in known:
        problems.append(f"chain: lacks the released model {short_digest(release.model.digest)}")
    problems += [
        f"gate {gate.name}: its source {short_digest(source.digest)} is not in the chain"
        for gate in release.gates
        for source in gate.sources
        if source.digest not in known
    ]
    return problems


def _check_links(directory: Path, release: Release) -> int:
    """Compare the artifacts of the chain that are next to the release; return how many are."""
    found, problems = 0, []
    for link in release.chain:
        path = directory / link.directory
        if not path.is_dir():
            continue
        found += 1
        artifact = open_artifact(path, kind=link.kind, check_sizes=False)
        verify_artifact(artifact)
        if artifact.digest != link.digest:
            problems.append(
                f"{link.directory}: digest {short_digest(artifact.digest)}, expected "
                f"{short_digest(link.digest)}"
            )
        elif file_sha256(path / MANIFEST) != link.manifest_sha256:
            problems.append(f"{link.directory}/{MANIFEST}: was changed after the release")
    _raise(directory, problems)
    return found


def _neighbour(path: Path, release: Release) -> Path | None:
    folder = path.absolute().parent / release.model.directory
    return folder if folder.is_dir() else None


def _check_model(copy: Path, release: Release) -> None:
    """Compare every file of a copy of the model with the release, which needs no manifest."""
    if not copy.is_dir():
        raise TamperedError(f"{copy}: no such directory; expected the released model")
    expected: list[FileEntry] = release.model.files
    problems = difference_lines(copy, expected)
    _raise(copy, problems, f"is not the released model {short_digest(release.model.digest)}")


def _raise(path: Path, problems: list[str], what: str = "differs from the release") -> None:
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise TamperedError(
            f"{path}: {what}:\n{lines}",
            hint="Fetch the release and the model again, or release again: "
            "tuneline release RUN.yaml",
        )
