"""The release that manifests are rendered from."""

from __future__ import annotations

from pathlib import Path

from tuneline.core.artifact import Artifact, open_artifact, verify_artifact
from tuneline.core.errors import VerdictError
from tuneline.core.release import RELEASE_FILE, RELEASE_KIND, Release, read_release
from tuneline.core.verdict import Verdict


def find_release(
    run_dir: Path, run_file: Path, model_digest: str, path: Path | None = None
) -> tuple[Artifact, Release]:
    """Return the newest release of a model whose verdict is PASS.

    Args:
        run_dir: The run's directory, in which `tuneline release` writes.
        run_file: For the hint.
        model_digest: The model that is deployed; a release of another model does not count.
        path: The directory of a release, in place of those in `run_dir`.

    Raises:
        NotAnArtifactError: `path` is not a release.
        TamperedError: The release differs from its manifest.
        VerdictError: There is no release of this model, or a gate of it fails.
    """
    paths = [path] if path is not None else _releases(run_dir)
    found = [(open_artifact(entry, kind=RELEASE_KIND), read_release(entry)) for entry in paths]
    of_model = [pair for pair in found if pair[1].model.digest == model_digest]
    hint = (
        f"Try: tuneline release {run_file}\n"
        "  Or for a trial, with a mark on every object: --allow-unreleased"
    )
    if not of_model:
        named = f"; {path} is of {found[0][1].model.digest[:19]}" if path is not None else ""
        raise VerdictError(f"model {model_digest[:19]}: has no release{named}", hint=hint)
    artifact, release = max(
        of_model, key=lambda pair: (pair[1].verdict is Verdict.PASS, pair[1].created_at)
    )
    verify_artifact(artifact)
    if release.verdict is not Verdict.PASS:
        reasons = "\n".join(f"  {gate.name}: {gate.words}" for gate in release.failed())
        raise VerdictError(f"{artifact.path}: {release.verdict}\n{reasons}", hint=hint)
    return artifact, release


def _releases(run_dir: Path) -> list[Path]:
    return sorted(file.parent for file in run_dir.glob(f"release-*/{RELEASE_FILE}"))
