"""The release that manifests are rendered from."""

from __future__ import annotations

from pathlib import Path

from tuneline.core.artifact import Artifact, open_artifact, verify_artifact
from tuneline.core.errors import ArtifactError, VerdictError
from tuneline.core.progress import logger
from tuneline.core.release import RELEASE_FILE, RELEASE_KIND, Release, read_release
from tuneline.core.verdict import Verdict


def find_release(
    run_dir: Path, run_file: Path, model_digest: str, path: Path | None = None
) -> tuple[Artifact, Release]:
    """Return the newest release of a model whose verdict is PASS.

    A release in `run_dir` that cannot be read, or differs from its manifest, is skipped with a
    warning. A newer release that fails is skipped with a warning too.

    Args:
        run_dir: The run's directory, in which `tuneline release` writes.
        run_file: For the hint.
        model_digest: The model that is deployed; a release of another model does not count.
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
    artifact, release = max(
        of_model, key=lambda pair: (pair[1].verdict is Verdict.PASS, pair[1].created_at)
    )
    if release.verdict is not Verdict.PASS:
        reasons = "\n".join(f"  {gate.name}: {gate.words}" for gate in release.failed())
        raise VerdictError(f"{artifact.path}: {release.verdict}\n{reasons}", hint=hint)
    for other, later in of_model:
        if later.created_at > release.created_at:
            gates = ", ".join(gate.name for gate in later.failed())
            logger.warning(
                "%s: is newer and %s (%s); the manifests come from %s",
                other.path, later.verdict, gates, artifact.path,
            )  # fmt: skip
    return artifact, release


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
