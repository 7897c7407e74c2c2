"""Compile caches as artifacts: made once, read-only, and checked while they are copied."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path, PurePosixPath

from serving.kernels.cache import CompileCache
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.progress import logger

KIND = "compile-cache"
NOT_BAKED = "precompiled_headers"
"""A folder of TorchInductor's compiler: 150 MB that only a further compilation reads."""


def bake_cache(cache: CompileCache, out: Path, inputs: list[Input]) -> Artifact:
    """Write the kernels of a cache as an artifact.

    Raises:
        ArtifactError: `out` exists or cannot be written, or the cache has no kernels.
        DiskFullError: There is not enough room.
    """
    names = [entry.path for entry in cache.entries() if NOT_BAKED not in Path(entry.path).parts]
    if not names:
        raise ArtifactError(f"{cache.folder}: has no compiled kernels to bake")
    with new_artifact(out, KIND, config={"key": cache.key}, inputs=inputs) as draft:
        for name in names:
            target = draft.dir / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cache.files / name, target)
        draft.metrics["size_bytes"] = sum((draft.dir / name).stat().st_size for name in names)
    return open_artifact(out)


def fill_cache(cache: CompileCache, baked: Path) -> None:
    """Copy a baked cache into an empty cache; leave the cache empty, with a warning, if it differs.

    The bytes that are compared are the bytes that are written, so nobody can change a file after
    its check.
    """
    try:
        artifact = open_artifact(baked, kind=KIND)
        key = artifact.manifest.config.get("key")
        if key != cache.key:
            different = sorted(
                name
                for name in {*cache.key, *(key or {})}
                if (key or {}).get(name) != cache.key.get(name)
            )
            raise ArtifactError(f"{baked}: is baked for another server ({', '.join(different)})")
        for entry in artifact.manifest.files:
            _copy(baked, entry.path, entry.sha256, cache.files)
    except (ArtifactError, OSError) as error:
        message = error.message if isinstance(error, ArtifactError) else str(error)
        logger.warning("%s; the baked compile cache is not used", message)
        shutil.rmtree(cache.files, ignore_errors=True)
        cache.files.mkdir(exist_ok=True)
        return
    cache.record()


def _copy(baked: Path, name: str, sha256: str, files: Path) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ArtifactError(f"{baked}: names the file {name}; expected a file below it")
    content = (baked / path).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactError(f"{baked / path}: differs from manifest.json")
    target = files / path
    target.parent.mkdir(parents=True, exist_ok=True)
    # TorchInductor and Triton take a file that is there for a whole file.
    draft = target.with_name(f"{target.name}.tmp")
    draft.write_bytes(content)
    draft.replace(target)
