"""The releases of a run: the one that counts, and the one that manifests are rendered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneline.core.artifact import Artifact, open_artifact, verify_artifact
from tuneline.core.digests import short_digest
from tuneline.core.disk import replace_file
from tuneline.core.errors import ArtifactError, VerdictError
from tuneline.core.progress import logger
from tuneline.core.release import RELEASE_FILE, RELEASE_KIND, Release, read_release
from tuneline.core.verdict import Verdict

LAST_FILE = "last-release"
"""Holds the name of the release that `tuneline release` returned last."""
JUDGED_SECTIONS = ("serving", "release")
"""The sections of run.yaml that a release is about, besides those that its artifacts record: the
server that was measured, and the limits of the gates."""
ADDRESS = ("serving.host", "serving.port")
"""Where a server listens on this machine. Pods have an address of their own."""

Pair = tuple[Artifact, Release]


def find_release(
    run_dir: Path,
    command: str,
    model_digest: str,
    config: Mapping[str, Any],
    path: Path | None = None,
) -> Pair:
    """Return the last release of a model, its server and its limits; its verdict must be PASS.

    A release in `run_dir` that cannot be read, or differs from its manifest, is skipped with a
    warning. An older release that passes does not outweigh a newer release that fails.

    Args:
        run_dir: The run's directory, in which `tuneline release` writes.
        command: The command that makes a release, for the hint.
        model_digest: The model that is deployed; a release of another model does not count.
        config: The configuration of the run as JSON values. A release with another value in one of
            `JUDGED_SECTIONS` does not count: its gates judged another server, or by other limits.
        path: The directory of a release, in place of those in `run_dir`.

    Raises:
        NotAnArtifactError: `path` is not a release.
        TamperedError: The release differs from its manifest, and there is no other.
        VerdictError: There is no release of this model, or a gate of it fails.
    """
    found, broken = ([_open(path)], []) if path is not None else open_releases(run_dir)
    of_model = [pair for pair in found if pair[1].model.digest == model_digest]
    hint = f"Try: {command}\n  Or for a trial, with a mark on every object: --allow-unreleased"
    if not of_model and broken:
        raise broken[0]
    if not of_model:
        other = "" if path is None else f"; {path} is of {short_digest(found[0][1].model.digest)}"
        raise VerdictError(f"model {short_digest(model_digest)}: has no release{other}", hint=hint)
    of_config = [pair for pair in of_model if not changed_keys(pair[1], config)]
    if not of_config:
        artifact, release = last_of(run_dir, of_model)
        keys = changed_keys(release, config)
        raise VerdictError(
            f"{artifact.path}: is about another server or other limits; run.yaml now has other "
            f"values of {', '.join(keys)}",
            hint=hint,
        )
    artifact, release = last_of(run_dir, of_config)
    if release.verdict is not Verdict.PASS:
        reasons = "\n".join(f"  {gate.name}: {gate.words}" for gate in release.failed())
        raise VerdictError(f"{artifact.path}: {release.verdict}\n{reasons}", hint=hint)
    return artifact, release


def changed_keys(
    release: Release, config: Mapping[str, Any], sections: Sequence[str] = JUDGED_SECTIONS
) -> list[str]:
    """Return the keys of these sections whose values differ from those that were judged."""
    keys = []
    for section in sections:
        now, then = config.get(section) or {}, release.config.get(section) or {}
        keys += [
            f"{section}.{key}"
            for key in sorted({*now, *then})
            if now.get(key, then) != then.get(key, now) and f"{section}.{key}" not in ADDRESS
        ]
    return keys


def last_of(run_dir: Path, pairs: Sequence[Pair]) -> Pair:
    """Return the release that counts: the one that `tuneline release` returned last.

    A release that is made again has its old time, so the time decides only among the others. Of two
    in one second, the failing release counts.
    """
    try:
        last = (run_dir / LAST_FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        last = ""

    def age(pair: Pair) -> tuple[bool, str, bool]:
        artifact, release = pair
        is_last = artifact.path.name == last
        return is_last, release.created_at, release.verdict is not Verdict.PASS

    return max(pairs, key=age)


def mark_last_release(artifact: Artifact) -> None:
    """Record in the run's directory that `tuneline release` returned this release last.

    Raises:
        ArtifactError: The directory cannot be written.
    """
    replace_file(artifact.path.parent / LAST_FILE, artifact.path.name + "\n")


def open_releases(run_dir: Path) -> tuple[list[Pair], list[ArtifactError]]:
    """Return the releases of a run, and the errors of those that are broken."""
    found, broken = [], []
    for path in sorted(file.parent for file in run_dir.glob(f"release-*/{RELEASE_FILE}")):
        try:
            found.append(_open(path))
        except ArtifactError as error:
            logger.warning("%s: is skipped: %s", path, error)
            broken.append(error)
    return found, broken


def _open(path: Path) -> Pair:
    """Return a release after every byte of it was compared with its manifest."""
    artifact = open_artifact(path, kind=RELEASE_KIND)
    verify_artifact(artifact)
    return artifact, read_release(path)
