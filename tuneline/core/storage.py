"""Artifacts in object storage: S3, Google Cloud Storage and Azure Blob Storage.

An upload writes the payload first and `manifest.json` last, and a reader starts from the manifest.
A place without a manifest is therefore not an artifact: nothing is there, or an upload has not
ended. Every request has a time limit and a limit of retries, so that a store that hangs or refuses
ends the command within minutes.

Credentials come from the environment, as the stores' own tools read them (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY), or from the identity
that a cluster gives to a pod.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from tuneline.core.artifact import Artifact, Manifest, partial_dir, verify_artifact
from tuneline.core.config import first_problem
from tuneline.core.digests import short_digest
from tuneline.core.disk import cannot_write, require_disk_space
from tuneline.core.environment import require
from tuneline.core.errors import (
    ArtifactError,
    ConfigError,
    NotAnArtifactError,
    ServerError,
    TamperedError,
)
from tuneline.core.files import MANIFEST
from tuneline.core.progress import progress
from tuneline.core.secrets import first_line, hide_passwords

SCHEMES = ("s3", "gs", "az", "abfss")
EXTRA = "storage"
CHUNK_BYTES = 2**25
"""The size of one request."""
MAX_PARTS = 9_000
"""Parts of one upload; S3 takes 10,000."""
REQUEST_S = 300
RETRIES = 4
RETRY_S = 120
INSTANCE_METADATA = "//169.254.169.254/"
"""The address at which a machine of a cloud asks for credentials of its own, if none are set."""


def is_storage_url(text: str) -> bool:
    """Return whether a text is the URL of a place in object storage."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def require_place(url: str) -> None:
    """Check that a text is the URL of a place in object storage, and that its library is here.

    Raises:
        ConfigError: It has another form, or a password.
        MissingError: The library is not installed.
    """
    scheme, separator, path = url.partition("://")
    if (hidden := hide_passwords(url)) != url:
        raise ConfigError(
            f"{hidden}: has a password in the URL; expected a place without one",
            hint="Put credentials into the environment: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or the variables of the other stores.",
        )
    if scheme not in SCHEMES or not separator or not path.strip("/"):
        raise ConfigError(
            f"{url}: is not a place in object storage; expected s3://BUCKET/PATH, gs://BUCKET/PATH "
            "or az://ACCOUNT/CONTAINER/PATH"
        )
    require("obstore", EXTRA)


def push_artifact(artifact: Artifact, url: str) -> bool:
    """Copy an artifact to a place in object storage; its manifest is written last.

    Returns:
        False if the place already holds this artifact.

    Raises:
        ArtifactError: The place holds other files or another artifact.
        TamperedError: The artifact differs from its manifest.
        ServerError: The store cannot be reached, refuses, or fails; a reader sees no artifact.
    """
    verify_artifact(artifact)
    obstore, store = _open(url)
    entries = artifact.manifest.files
    with _errors(url):
        if _is_there(store, artifact, url):
            return False
        listed = {entry.path for entry in entries}
        foreign = sorted(name for name in _names(store) if name not in listed)
        if foreign:
            raise ArtifactError(
                f"{url}: holds {foreign[0]}, which is not a file of {artifact.path}",
                hint="Choose another place, or remove the files there.",
            )
        with progress("push", len(entries), "files") as advance:
            for index, entry in enumerate(entries, start=1):
                chunk_bytes = max(CHUNK_BYTES, -(-entry.size_bytes // MAX_PARTS))
                source = artifact.path / entry.path
                obstore.put(store, entry.path, source, chunk_size=chunk_bytes, max_concurrency=4)
                advance(index, entry.path)
        text = (artifact.path / MANIFEST).read_bytes()
        try:
            obstore.put(store, MANIFEST, text, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            _is_there(store, artifact, url)  # another process was faster
    return True


def pull_artifact(url: str, out: Path) -> Artifact:
    """Copy an artifact from object storage to a directory, whole or not at all.

    Raises:
        NotAnArtifactError: The place holds no manifest, so nothing is there or an upload has not
            ended.
        TamperedError: A file differs from the manifest.
        ArtifactError: `out` exists, or cannot be written.
        ServerError: The store cannot be reached, refuses, or fails.
    """
    obstore, store = _open(url)
    with _errors(url):
        manifest, text = _read_manifest(obstore, store, url)
    for entry in manifest.files:
        _require_inside(entry.path, url)
    sizes = {entry.path: entry.size_bytes for entry in manifest.files}
    with _new_directory(out, sum(sizes.values())) as partial:
        _download(obstore, store, sizes, partial, url)
        (partial / MANIFEST).write_bytes(text)
        verify_artifact(Artifact(partial, manifest))
    return Artifact(out, manifest)


def pull_files(url: str, out: Path) -> int:
    """Copy all files below a place in object storage, without a manifest, and return their number.

    Raises:
        NotAnArtifactError: There is no file.
        ArtifactError: `out` exists, or cannot be written.
        ServerError: The store cannot be reached, refuses, or fails.
    """
    obstore, store = _open(url)
    with _errors(url):
        sizes = _names(store)
    if not sizes:
        raise NotAnArtifactError(f"{url}: holds no file", hint="Check the URL.")
    for name in sizes:
        _require_inside(name, url)
    with _new_directory(out, sum(sizes.values())) as partial:
        _download(obstore, store, sizes, partial, url)
    return len(sizes)


def list_artifacts(url: str) -> list[str]:
    """Return the names of the artifacts below a place, one level deep.

    Raises:
        ServerError: The store cannot be reached, refuses, or fails.
    """
    _, store = _open(url)
    with _errors(url):
        paths = [PurePosixPath(name) for name in _names(store)]
    return sorted(path.parts[0] for path in paths if path.parts[1:] == (MANIFEST,))


def _open(url: str) -> tuple[Any, Any]:
    """Return the library and a store whose root is the place."""
    require_place(url)
    obstore = require("obstore", EXTRA)
    stores = require("obstore.store", EXTRA)
    timeout = timedelta(seconds=REQUEST_S)
    options = {"connect_timeout": timedelta(seconds=10), "timeout": timeout, "allow_http": True}
    retries = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)}
    with _errors(url):
        store = stores.from_url(url.rstrip("/"), client_options=options, retry_config=retries)
    return obstore, store


def _names(store: Any) -> dict[str, int]:
    """Return all files below the place with their sizes."""
    import obstore

    return {meta["path"]: meta["size"] for batch in obstore.list(store) for meta in batch}


def _is_there(store: Any, artifact: Artifact, url: str) -> bool:
    """Return whether the place holds this artifact.

    Raises:
        ArtifactError: It holds another one.
    """
    import obstore

    try:
        found, _ = _read_manifest(obstore, store, url)
    except NotAnArtifactError:
        return False
    if found.digest != artifact.digest:
        raise ArtifactError(
            f"{url}: holds the artifact {short_digest(found.digest)}; expected "
            f"{artifact.short_digest}, or an empty place",
            hint="An artifact is written once. Choose another place.",
        )
    return True


def _read_manifest(obstore: Any, store: Any, url: str) -> tuple[Manifest, bytes]:
    try:
        text = bytes(obstore.get(store, MANIFEST).bytes())
    except FileNotFoundError:
        raise NotAnArtifactError(
            f"{url}: holds no {MANIFEST}; nothing is there, or an upload has not ended",
            hint="Check the URL, or run the command again that uploads it.",
        ) from None
    try:
        return Manifest.model_validate_json(text), text
    except ValidationError as error:
        raise NotAnArtifactError(f"{url}/{MANIFEST}: {first_problem(error)}") from None


def _require_inside(name: str, url: str) -> None:
    """Check that a name from the store stays inside the directory that it is copied to."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
        raise TamperedError(f"{url}: names the file {name!r}; expected a path inside the artifact")


@contextmanager
def _new_directory(out: Path, size_bytes: int) -> Iterator[Path]:
    """Give a directory that becomes `out` at the end of the block, or is removed."""
    if out.exists():
        raise ArtifactError(f"{out}: exists already", hint="Remove it, or choose another place.")
    require_disk_space(out, size_bytes + 2**20)
    partial = partial_dir(out)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(obstore: Any, store: Any, sizes: dict[str, int], target: Path, url: str) -> None:
    with progress("pull", len(sizes), "files") as advance:
        for index, (name, size_bytes) in enumerate(sizes.items(), start=1):
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                # One request for each chunk, so that the time limit holds for a chunk.
                for start in range(0, size_bytes, CHUNK_BYTES):
                    end = min(start + CHUNK_BYTES, size_bytes)
                    with _errors(url, name):
                        data = obstore.get_range(store, name, start=start, end=end)
                    # A file that was replaced since it was listed ends earlier, without an error.
                    if (found := start + len(data)) < end:
                        raise TamperedError(
                            f"{url}/{name}: ends after {found} bytes; expected {size_bytes}",
                            hint="Wait until nobody writes there, and type the command again.",
                        )
                    file.write(data)
            advance(index, name)


@contextmanager
def _errors(url: str, name: str = "") -> Iterator[None]:
    """Name the place in the errors of the library."""
    exceptions = require("obstore.exceptions", EXTRA)
    place = f"{url}/{name}" if name else url
    try:
        yield
    except FileNotFoundError:
        if name:
            raise TamperedError(f"{place}: is not there; expected a file of the artifact") from None
        raise ServerError(f"{url}: the bucket is not there", hint="Check the URL.") from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise ServerError(
            f"{place}: the store refuses: {first_line(error)}",
            hint="Check the credentials, and that they may list, read and write there. "
            "The same command then continues.",
        ) from None
    except exceptions.BaseError as error:
        if INSTANCE_METADATA in str(error):
            raise ServerError(
                f"{place}: no credentials are set, and this machine has none of its own",
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_ACCOUNT_KEY. "
                "The same command then continues.",
            ) from None
        raise ServerError(
            f"{place}: the store cannot be used: {first_line(error)}",
            hint="Check the bucket, the region, the credentials and the network. "
            "The same command then continues.",
        ) from None
