"""The packages that each extra of Tuneline needs, from the metadata of the installed package."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator

from packaging.requirements import Requirement

DISTRIBUTION = "tuneline"
RUNTIME_EXTRAS = ("train", "export", "serve", "cpu", "gpu", "loadtest", "release", "storage")
"""All extras but `dev`."""


def requirements(extra: str) -> list[Requirement]:
    """Return what an extra adds to the package's own dependencies, on this machine.

    Raises:
        PackageNotFoundError: Tuneline is not installed, so it has no metadata.
    """
    return [
        entry
        for entry in _of_extras()
        if entry.marker is not None and entry.marker.evaluate({"extra": extra})
    ]


@functools.cache
def _of_extras() -> tuple[Requirement, ...]:
    """Return the requirements that only an extra adds."""
    found = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    return tuple(
        entry
        for entry in found
        if entry.marker is not None and not entry.marker.evaluate({"extra": ""})
    )


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def problem_of(requirement: Requirement) -> str | None:
    """Return why a requirement is not met here; None if it is."""
    name = requirement.name
    version = installed_version(name)
    if version is None:
        return f"{name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{name} is {version}; expected {requirement.specifier}"
    if not any(importlib.util.find_spec(module) for module in _modules(name)):
        return f"{name} {version} is listed as installed, and none of its modules is there"
    return None


def _modules(name: str) -> Iterator[str]:
    """Yield the top-level modules of an installed distribution, without importing them.

    Some have a list of thousands of files, so a path is read when its turn comes.
    """
    distribution = importlib.metadata.distribution(name)
    declared = (distribution.read_text("top_level.txt") or "").split()
    if declared:
        yield from filter(str.isidentifier, declared)
        return
    for line in (distribution.read_text("RECORD") or "").splitlines():
        path = line.partition(",")[0]
        module = path.partition("/")[0].removesuffix(".py")
        if path.endswith(".py") and module.isidentifier():
            yield module
