"""The files of a directory: their list with sizes and hashes, and a comparison with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tuneline.core.config import StrictModel
from tuneline.core.progress import reading

MANIFEST = "manifest.json"


class FileEntry(StrictModel):
    """A file of an artifact, as the manifest lists it."""

    path: str
    """Relative, with forward slashes."""
    size_bytes: int
    sha256: str


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def nearest_folder(path: Path) -> Path:
    """Return a path if it is there, or else its nearest parent that is there."""
    return next(folder for folder in [path, *path.absolute().parents] if folder.exists())


def payload_files(directory: Path) -> list[Path]:
    """Return the files below a directory, except for its manifest, in order."""
    return [
        file
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file != directory / MANIFEST
    ]


def relative_name(file: Path, directory: Path) -> str:
    """Return a file's path in a manifest: relative, with forward slashes."""
    return file.relative_to(directory).as_posix()


def difference_lines(
    directory: Path, files: Sequence[FileEntry], ignore: Sequence[str] = ()
) -> list[str]:
    """Return one line for each file that was changed, removed, added or renamed.

    Args:
        directory: The directory; its own `manifest.json` is not a file of the list.
        files: The files that it should hold.
        ignore: Patterns of files that it may hold too, as `fnmatch` reads them: `*` matches `/`.
    """
    listed = {entry.path: entry for entry in files}
    found = {relative_name(file, directory): file for file in payload_files(directory)}
    found = {
        path: file
        for path, file in found.items()
        if path in listed or not any(fnmatchcase(path, pattern) for pattern in ignore)
    }
    # A link to a directory hides its files from the walk, and a broken link is not a file.
    links = sorted(
        relative_name(path, directory)
        for path in directory.rglob("*")
        if path.is_symlink() and not path.is_file()
    )
    links = [path for path in links if not any(fnmatchcase(path, one) for one in ignore)]
    sha256, done_bytes = {}, 0
    with reading(f"checking {directory.name}", sum(entry.size_bytes for entry in files)) as advance:
        for path, file in found.items():
            sha256[path] = file_sha256(file)
            done_bytes += file.stat().st_size
            advance(done_bytes)
    added = sorted(found.keys() - listed.keys())
    lines = []
    for path in sorted(listed.keys() - found.keys()):
        renamed = next((new for new in added if sha256[new] == listed[path].sha256), None)
        if renamed is None:
            lines.append(f"{path}: missing")
        else:
            added.remove(renamed)
            lines.append(f"{path}: renamed to {renamed}")
    lines += [f"{path}: not in the manifest" for path in added]
    lines += [f"{path}: is a symbolic link, and not to a file" for path in links]
    lines += [
        f"{path}: sha256 {sha256[path][:12]}…, expected {listed[path].sha256[:12]}…"
        for path in sorted(listed.keys() & found.keys())
        if sha256[path] != listed[path].sha256
    ]
    return lines
