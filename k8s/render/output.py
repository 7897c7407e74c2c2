"""The directory of a rendered tree: its marker, its check, and its replacement as a whole."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from k8s.render.kustomize import build
from k8s.rules.check import check_manifests
from k8s.rules.objects import Object
from tuneline import __version__
from tuneline.core.disk import cannot_write, disk_full
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.files import file_sha256
from tuneline.core.progress import logger

MARKER = "render.json"


@contextmanager
def new_tree(out: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Give an empty directory that becomes `out` at the end of the block, with a marker.

    Args:
        out: A directory that does not exist, or an earlier output.
        facts: The name, the digests and other facts of the tree, as JSON values.

    Raises:
        ArtifactError: `out` exists and was not rendered, was changed since, or cannot be made.
        DiskFullError: The file system ran out of space.
    """
    _check_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from None
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            tree = Path(scratch) / "new"
            tree.mkdir()
            yield tree
            marker = {"tuneline": __version__, **facts, "files": _digests(tree)}
            (tree / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
            if out.exists():
                out.rename(Path(scratch) / "old")
            tree.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(out) from error
        raise


def check_rendered(directories: Sequence[Path]) -> None:
    """Check the objects that kubectl makes of directories which are applied together.

    Raises:
        ConfigError: They break a rule.
    """
    objects: list[Object] = []
    for directory in directories:
        built = build(directory)
        if built is None:
            logger.warning("the manifests were not checked: neither kubectl nor kustomize is here")
            return
        objects += built
    if found := check_manifests(objects):
        raise ConfigError([f"rendered manifests: {problem}" for problem in found])


def _check_replaceable(out: Path) -> None:
    """Replace what was rendered here and nothing that somebody wrote or changed."""
    if not out.exists():
        return
    try:
        known = set(json.loads((out / MARKER).read_text(encoding="utf-8"))["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(
            f"{out}: exists already and was not written by `tuneline deploy render`",
            hint="Choose another --out.",
        ) from None
    changed = sorted(known ^ set(_digests(out).items()))
    if changed:
        raise ArtifactError(
            f"{out / changed[0][0]}: was changed, added or removed since it was rendered",
            hint="Choose another --out. Changes of your own belong in a kustomization of your own "
            f"that lists {out.name} under `resources`.",
        )


def _digests(tree: Path) -> dict[str, str]:
    return {
        file.relative_to(tree).as_posix(): file_sha256(file)
        for file in sorted(tree.rglob("*"))
        if file.is_file() and file != tree / MARKER
    }
