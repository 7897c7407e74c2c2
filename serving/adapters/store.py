"""The adapters that a server should have, and a verified copy of each, in one folder.

vLLM reads an adapter again whenever it has swapped it out, so it reads a copy that nobody changes.
The list of desired adapters is replaced as a whole: a reader sees the earlier list or the new one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from tuneline.core.artifact import Artifact, open_artifact, verify_artifact
from tuneline.core.config import StrictModel
from tuneline.core.digests import short_digest
from tuneline.core.disk import cannot_write, replace_file, sync_path
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    NotAnArtifactError,
    TamperedError,
)
from tuneline.core.files import MANIFEST

STATE_FILE = "adapters.json"
VERSIONS = "versions"


class Version(StrictModel):
    """One adapter that was proven, and the figures of its proof."""

    digest: str
    reference_digest: str
    added_at: str
    """UTC, ISO 8601."""
    figures: dict[str, Any]


class Desired(StrictModel):
    """The version that a name means, and the version before, kept for a roll-back."""

    current: Version
    previous: Version | None = None
    over: str | None = None
    """The digest of the run's own adapter whose name this entry took over."""


_STATE = TypeAdapter(dict[str, Desired])


def lock_state(state_dir: Path) -> IO[str]:
    """Take the folder for this process, which keeps the returned file open.

    Raises:
        ConfigError: Another server uses the folder.
        DiskFullError, ArtifactError: The folder cannot be written.
    """
    try:
        (state_dir / VERSIONS).mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state_dir / ".lock").open("w")
    except OSError as error:
        raise cannot_write(state_dir, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"{state_dir}: another server uses the adapters there") from None
    return lock


def read_state(state_dir: Path) -> dict[str, Desired]:
    """Return the desired adapters by name; none if there is no list.

    Raises:
        ArtifactError: The list is broken.
    """
    path = state_dir / STATE_FILE
    try:
        return _STATE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise ArtifactError(
            f"{path}: is not a list of adapters: {error}",
            hint=f"Remove it and add the adapters again: rm {path}",
        ) from None


def write_state(state_dir: Path, desired: Mapping[str, Desired]) -> None:
    """Replace the list of desired adapters, so that a crash leaves the earlier or the new list.

    Raises:
        DiskFullError, ArtifactError: The list cannot be written; the earlier list stays.
    """
    path = state_dir / STATE_FILE
    replace_file(path, _STATE.dump_json(dict(desired), indent=2).decode())
    sync_path(state_dir)


def store_version(
    state_dir: Path, root: Path, adapter_at: str, reference_at: str, digest: str | None = None
) -> tuple[Artifact, Artifact]:
    """Copy an adapter and its reference into the folder, and compare the copies' bytes with their
    manifests.

    Args:
        root: The folder that both must be below.
        digest: The digest that the caller expects.

    Raises:
        ConfigError: A path is not below `root`.
        NotAnArtifactError, ArtifactError: A path is not an artifact of the right kind.
        TamperedError: Files differ from the manifest, or the digest is another one.
        DiskFullError: The copy has no room.
    """
    adapter = _open_below(root, adapter_at, "adapter")
    reference = _open_below(root, reference_at, "reference")
    if digest is not None and adapter.digest != digest:
        raise TamperedError(
            f"{adapter.path}: the digest is {adapter.short_digest}; expected {short_digest(digest)}"
        )
    verify_artifact(adapter)
    verify_artifact(reference)
    final = version_dir(state_dir, adapter.digest, reference.digest)
    try:
        # vLLM may be reading this copy, so a whole copy is never replaced.
        return open_version(state_dir, adapter.digest, reference.digest)
    except (TamperedError, NotAnArtifactError):
        pass
    draft = Path(tempfile.mkdtemp(dir=state_dir / VERSIONS, prefix="."))
    try:
        _copy(adapter, draft / "adapter", root)
        _copy(reference, draft / "reference", root)
        for name in ("adapter", "reference"):
            verify_artifact(open_artifact(draft / name))
        for path in (*draft.rglob("*"), draft):
            sync_path(path)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        sync_path(final.parent)
    except OSError as error:
        raise cannot_write(final, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return open_version(state_dir, adapter.digest, reference.digest)


def open_version(state_dir: Path, digest: str, reference_digest: str) -> tuple[Artifact, Artifact]:
    """Return the copies of an adapter and of its reference, after a comparison of every byte.

    Raises:
        TamperedError, NotAnArtifactError: A copy has changed or is gone.
    """
    folder = version_dir(state_dir, digest, reference_digest)
    adapter = open_artifact(folder / "adapter", kind="adapter")
    reference = open_artifact(folder / "reference", kind="reference")
    for artifact, expected in ((adapter, digest), (reference, reference_digest)):
        verify_artifact(artifact)
        if artifact.digest != expected:
            raise TamperedError(
                f"{artifact.path}: the digest is {artifact.short_digest}; expected "
                f"{short_digest(expected)}"
            )
    return adapter, reference


def version_dir(state_dir: Path, digest: str, reference_digest: str) -> Path:
    """Return the folder of an adapter's copy and of its reference's."""
    return state_dir / VERSIONS / f"{short_digest(digest)}-{short_digest(reference_digest)}"


def remove_version(state_dir: Path, version: Version) -> None:
    """Remove the copy of a version that no name needs and that vLLM does not have loaded."""
    folder = version_dir(state_dir, version.digest, version.reference_digest)
    shutil.rmtree(folder, ignore_errors=True)


def remove_other_versions(state_dir: Path, desired: Iterable[Desired]) -> None:
    """Remove copies that no name needs. Only before vLLM has loaded any: it reads copies again."""
    versions = [v for entry in desired for v in (entry.current, entry.previous) if v is not None]
    kept = {version_dir(state_dir, v.digest, v.reference_digest) for v in versions}
    for folder in (state_dir / VERSIONS).iterdir():
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _open_below(root: Path, at: str, kind: str) -> Artifact:
    """Open an artifact that lies wholly below `root`.

    Every path is compared with `root` before the file behind the path is read or measured.
    """
    folder = _below(root, at)
    _below(root, str(folder / MANIFEST))
    artifact = open_artifact(folder, kind=kind, check_sizes=False)
    for entry in artifact.manifest.files:
        if not Path(os.path.normpath(folder / entry.path)).is_relative_to(folder):
            raise TamperedError(f"{folder / MANIFEST}: the path {entry.path!r} leaves the folder")
        _below(root, str(folder / entry.path))
    # Files that the manifest does not list are read too, to find a file that was renamed.
    for directory, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _below(root, str(Path(directory, name)))
    return artifact


def _below(root: Path, path: str) -> Path:
    """Return a folder or file below `root`, with its links followed.

    The message has no path of the server's but the given one.
    """
    try:
        resolved = Path(path).resolve()
    except (OSError, ValueError) as error:  # a path with NUL, or a loop of links
        raise ConfigError(f"{path!r}: cannot be used as a path: {error}") from None
    if not Path(path).is_absolute() or not resolved.is_relative_to(root.resolve()):
        raise ConfigError(
            f"{path}: is not an absolute path below serving.adapters.root",
            hint="Copy the artifact there.",
        )
    return resolved


def _copy(artifact: Artifact, to: Path, root: Path) -> None:
    """Copy the files that the manifest lists; no link may lead out of `root`."""
    to.mkdir()
    for name in (MANIFEST, *(entry.path for entry in artifact.manifest.files)):
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Compared again: a link may have changed since the artifact was opened.
        shutil.copyfile(_below(root, str(artifact.path / name)), target)
