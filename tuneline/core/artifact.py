"""Artifacts: directories with payload files and one `manifest.json`, written whole or not at all.

A writer fills a directory next to the final name, syncs it, adds the manifest last, and renames the
directory. A directory with a valid manifest is therefore complete; any other directory is not an
artifact. The digest covers only kind and files: equal content has an equal digest on every machine.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from tuneline.core.config import StrictModel, first_problem
from tuneline.core.digests import short_digest
from tuneline.core.disk import cannot_write, disk_full, sync_path
from tuneline.core.documents import parse_json
from tuneline.core.environment import environment_facts
from tuneline.core.errors import ArtifactError, NotAnArtifactError, TamperedError
from tuneline.core.files import (
    MANIFEST,
    FileEntry,
    difference_lines,
    file_sha256,
    payload_files,
    relative_name,
)
from tuneline.core.lock import locked_file

SCHEMA_VERSION: Literal[1] = 1
JOURNAL = ".journal.jsonl"
STAGE_DIR = re.compile("-[0-9a-f]{10}$")
"""The end of a name that a line gives to a directory: `<stage>-<key>`."""
LIBRARY_DISK_FULL = re.compile(
    r"No space left on device|os error 28|PytorchStreamWriter failed writing|inline_container\.cc"
    r"|problem writing element|\d+ requested and \d+ written"
)
"""Words of safetensors, torch and numpy for a full disk. None of them raises its error code."""


class Input(StrictModel):
    """An artifact or folder that another artifact was made from."""

    role: str
    """Its role in the step, e.g. `base` or `dataset`."""
    kind: str
    digest: str


def file_input(role: str, path: Path) -> Input:
    """Return a file by its digest, for the manifest of an artifact that is made from it."""
    return Input(role=role, kind="file", digest=f"sha256:{file_sha256(path)}")


class Manifest(StrictModel):
    """The content of `manifest.json`."""

    schema_version: Literal[1]
    kind: str
    digest: str
    config: dict[str, Any]
    """The fully resolved configuration of the step that wrote it."""
    inputs: list[Input]
    files: list[FileEntry]
    environment: dict[str, Any]
    metrics: dict[str, Any]
    created_at: str
    """UTC, ISO 8601."""
    made_as: str = ""
    """The name of its directory when it was made. The name that a line gives has the key of the
    stage, so an artifact that was renamed to another key is told from one that was made for it."""


@dataclass(frozen=True)
class Artifact:
    """A complete directory and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def short_digest(self) -> str:
        """Return the first twelve hexadecimal digits, as names use them."""
        return short_digest(self.manifest.digest)

    @property
    def size_bytes(self) -> int:
        """Return the size of all files that the manifest lists."""
        return sum(entry.size_bytes for entry in self.manifest.files)

    def as_input(self, role: str) -> Input:
        """Return the entry for the manifest of an artifact that is made from this one."""
        return Input(role=role, kind=self.kind, digest=self.digest)


@dataclass
class Draft:
    """An artifact that is not complete yet: put files under `dir` and figures into `metrics`."""

    dir: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    """Hashes, by relative path, of files that the writer hashed itself; others are read again."""

    @property
    def journal(self) -> Path:
        """Return the path of the file for a resumable step's notes, as JSON lines."""
        return self.dir / JOURNAL


@contextmanager
def new_artifact(
    out: Path,
    kind: str,
    *,
    config: dict[str, Any],
    inputs: Sequence[Input] = (),
    resumable: bool = False,
) -> Iterator[Draft]:
    """Write an artifact to `out`: `with new_artifact(...) as draft:` and fill `draft.dir`.

    At the end of the block the files are hashed and synced, the manifest is written and the
    directory gets its name. If the block raises, no file remains. Open the result with
    `open_artifact(out)`.

    After a kill or an interruption, a resumable step with the same kind, configuration and inputs
    finds its files in `draft.dir` and its notes in `draft.journal`. The step must check the files
    before it uses them.

    Raises:
        ArtifactError: `out` exists already or cannot be written, or another process is writing it.
        DiskFullError: The file system ran out of space.
    """
    if out.exists():
        raise _exists(out)
    partial = partial_dir(out)
    key = canonical_digest(
        {"kind": kind, "config": config, "inputs": [[i.role, i.digest] for i in inputs]}
    )
    with only_writer(out), _disk_errors(out):
        if out.exists():  # its writer ended while this process came to the lock
            raise _exists(out)
        # The lock is free, so the writer of any files in this directory was killed.
        draft = Draft(partial)
        if not (resumable and _journal_key(draft) == key):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        if resumable and not draft.journal.exists():
            draft.journal.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
        keep = False
        try:
            yield draft
            draft.journal.unlink(missing_ok=True)
            _finish(draft, out.name, kind, config, inputs)
            partial.rename(out)
            sync_path(out.parent)
        except (KeyboardInterrupt, SystemExit):
            keep = resumable
            raise
        finally:
            if not keep:
                shutil.rmtree(partial, ignore_errors=True)


def _exists(out: Path) -> ArtifactError:
    return ArtifactError(
        f"{out}: exists already; an artifact is written once",
        hint=f"Choose another --out, or remove it first: {remove_command(out)}",
    )


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keep other writers of a path away; its folder is made.

    Raises:
        ArtifactError: Another process is writing it, or the folder cannot be written.
    """
    lock_path = out.parent / f".{out.name}.lock"
    with ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_file(lock_path))
        except BlockingIOError:
            raise ArtifactError(
                f"{out}: another process is writing it", hint="Wait for it, or end it."
            ) from None
        except OSError as error:
            raise cannot_write(out, error) from error
        try:
            yield
        finally:
            lock_path.unlink(missing_ok=True)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Name a full disk in the block's errors."""
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or LIBRARY_DISK_FULL.search(str(error)):
            raise disk_full(out) from error
        if isinstance(error, OSError) and code == errno.EFBIG:
            raise cannot_write(out, error) from error
        raise


def partial_dir(out: Path) -> Path:
    """Return the directory that holds an artifact until it is complete."""
    return out.parent / f".{out.name}.partial"


def open_artifact(
    path: Path, *, kind: str | Sequence[str] | None = None, check_sizes: bool = True
) -> Artifact:
    """Open a complete artifact and check the sizes of its files; `verify_artifact` checks contents.

    Without `check_sizes`, the caller compares every file, and names every difference.

    Raises:
        NotAnArtifactError: No readable manifest: missing, foreign or half-written.
        TamperedError: A file is missing or has another size.
        ArtifactError: The artifact has another kind than `kind`.
    """
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        what = "has no manifest.json" if path.is_dir() else "no such directory"
        raise NotAnArtifactError(
            f"{path}: {what}; expected a complete artifact", hint=_where_else(path)
        ) from None
    except (OSError, UnicodeDecodeError):
        raise NotAnArtifactError(f"{path}: expected a directory with a manifest.json") from None
    try:
        parse_json(text)
        manifest = Manifest.model_validate_json(text)
    except (ValueError, RecursionError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else error
        raise NotAnArtifactError(
            f"{path / MANIFEST}: {problem}; expected a manifest of schema version {SCHEMA_VERSION}",
            hint=_make_again(path),
        ) from None
    artifact = Artifact(path, manifest)
    for entry in manifest.files if check_sizes else []:
        file = path / entry.path
        if not file.is_file() or file.stat().st_size != entry.size_bytes:
            found = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
            raise TamperedError(
                f"{file}: expected {entry.size_bytes} bytes, found {found}",
                hint=_make_again(path),
            )
    kinds = [kind] if isinstance(kind, str) else kind
    if kinds is not None and manifest.kind not in kinds:
        raise ArtifactError(
            f"{path}: is an artifact of kind {manifest.kind!r}; expected {' or '.join(kinds)}"
        )
    return artifact


def verify_artifact(artifact: Artifact, ignore: Sequence[str] = ()) -> None:
    """Read every byte of an artifact and compare it with the manifest.

    Files that are not listed and match a pattern of `ignore` do not count.

    Raises:
        TamperedError: A file differs, is missing, is renamed or is not listed, or the digest does
            not match; the message names every difference.
    """
    problems = difference_lines(artifact.path, artifact.manifest.files, ignore)
    if not problems and _digest(artifact.kind, artifact.manifest.files) != artifact.digest:
        problems.append("manifest.json: its digest does not match its files and kind")
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise TamperedError(
            f"{artifact.path}: differs from its manifest:\n{lines}",
            hint=_make_again(artifact.path),
        )


def _where_else(path: Path) -> str:
    """Return a hint for a path without a manifest; nobody is told to remove other folders."""
    inner = sorted(manifest.parent.name for manifest in path.glob(f"*/{MANIFEST}"))
    if inner:
        return f"It holds artifacts; give one of them, such as {path / inner[0]}."
    if path.is_dir() and STAGE_DIR.search(path.name):
        return f"Check the path. {_make_again(path)}"
    return "Check the path."


def _make_again(path: Path) -> str:
    return f"Remove it and run its step again: {remove_command(path)}"


def remove_command(path: Path) -> str:
    """Return the command that removes a directory, as a shell takes it."""
    return f"rm -r {shlex.quote(str(path))}"


def canonical_digest(value: Any) -> str:
    """Return `sha256:...` of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _journal_key(draft: Draft) -> str | None:
    """Return the key of the step that left this directory, or None without a readable journal."""
    try:
        first, _, _ = draft.journal.read_text(encoding="utf-8").partition("\n")
        return str(json.loads(first)["key"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        return None


def _finish(
    draft: Draft, name: str, kind: str, config: dict[str, Any], inputs: Sequence[Input]
) -> None:
    files = []
    for file in payload_files(draft.dir):
        sync_path(file)
        files.append(
            FileEntry(
                path=relative_name(file, draft.dir),
                size_bytes=file.stat().st_size,
                sha256=draft.sha256.get(relative_name(file, draft.dir)) or file_sha256(file),
            )
        )
    files.sort(key=lambda entry: entry.path)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        kind=kind,
        digest=_digest(kind, files),
        config=config,
        inputs=list(inputs),
        files=files,
        environment=environment_facts(),
        metrics=draft.metrics,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        made_as=name,
    )
    (draft.dir / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    sync_path(draft.dir / MANIFEST)
    sync_path(draft.dir)


def _digest(kind: str, files: Sequence[FileEntry]) -> str:
    entries = sorted([entry.path, entry.size_bytes, entry.sha256] for entry in files)
    return canonical_digest({"kind": kind, "files": entries})
