"""The release that manifests are rendered from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact, open_artifact, verify_artifact
from tuneline.core.errors import ArtifactError, VerdictError
from tuneline.core.progress import logger
from tuneline.core.release import RELEASE_FILE, RELEASE_KIND, Release, read_release
from tuneline.core.verdict import Verdict


def find_release(
    run_dir: Path,
    run_file: Path,
    model_digest: str,
    serving: Mapping[str, Any],
    path: Path | None = None,
) -> tuple[Artifact, Release]:
    """Return the newest release of a model and its server; its verdict must be PASS.

    A release in `run_dir` that cannot be read, or differs from its manifest, is skipped with a
    warning. An older release that passes does not outweigh a newer release that fails.

    Args:
        run_dir: The run's directory, in which `tuneline release` writes.
        run_file: For the hint.
        model_digest: The model that is deployed; a release of another model does not count.
        serving: The section `serving` of the run as JSON values. The gates measured the server that
            a release's own section describes, so a release with another section does not count.
        path: The directory of a release, in place of those in `run_dir`.

    Raises:
        NotAnArtifactError: `path` is not a release.
        TamperedError: The release differs from its manifest, and there is no other.
        VerdictError: There is no release of this model, or a gate of it fails.
    """
    found, broken = ([_open(path)], []) if path is not None else _open_all(run_dir)
    of_model = [pair for pair in found if pair[1].model.digest == model_digest]
    hint = (
        f"Try: tuneline release {run_file}\n"
        "  Or for a trial, with a mark on every object: --allow-unreleased"
    )
    if not of_model and broken:
        raise broken[0]
    if not of_model:
        named = f"; {path} is of {found[0][1].model.digest[:19]}" if path is not None else ""
        raise VerdictError(f"model {model_digest[:19]}: has no release{named}", hint=hint)
    of_server = [pair for pair in of_model if pair[1].config.get("serving") == dict(serving)]
    if not of_server:
        artifact, release = max(of_model, key=_age)
        there = release.config.get("serving") or {}
        keys = sorted(
            key for key in {*serving, *there} if serving.get(key, there) != there.get(key, serving)
        )
        raise VerdictError(
            f"{artifact.path}: is about another server; run.yaml now has other values of "
            + ", ".join(f"serving.{key}" for key in keys),
            hint=hint,
        )
    artifact, release = max(of_server, key=_age)
    if release.verdict is not Verdict.PASS:
        reasons = "\n".join(f"  {gate.name}: {gate.words}" for gate in release.failed())
        raise VerdictError(f"{artifact.path}: {release.verdict}\n{reasons}", hint=hint)
    return artifact, release


def _age(pair: tuple[Artifact, Release]) -> tuple[str, bool]:
    """Return the sorting key of a release; of two in one second, the failing release decides."""
    return pair[1].created_at, pair[1].verdict is not Verdict.PASS


def _open(path: Path) -> tuple[Artifact, Release]:
    """Return a release after every byte of it was compared with its manifest."""
    artifact = open_artifact(path, kind=RELEASE_KIND)
    verify_artifact(artifact)
    return artifact, read_release(path)


def _open_all(run_dir: Path) -> tuple[list[tuple[Artifact, Release]], list[ArtifactError]]:
    """Return the releases of a run, and the errors of those that are broken."""
    found, broken = [], []
    for path in sorted(file.parent for file in run_dir.glob(f"release-*/{RELEASE_FILE}")):
        try:
            found.append(_open(path))
        except ArtifactError as error:
            logger.warning("%s: is skipped: %s", path, error)
            broken.append(error)
    return found, broken
