"""The packages that each extra of Tuneline needs, from the metadata of the installed package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence

from packaging.requirements import Requirement

DISTRIBUTION = "tuneline"
RUNTIME_EXTRAS = ("train", "export", "serve", "cpu", "gpu", "loadtest", "release", "storage")
"""All extras but `dev`."""


def requirements(extra: str) -> list[Requirement]:
    """Return what an extra adds to the package's own dependencies, on this machine.

    Raises:
        PackageNotFoundError: Tuneline is not installed, so it has no metadata.
    """
    found = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    return [
        entry
        for entry in found
        if entry.marker is not None
        and entry.marker.evaluate({"extra": extra})
        and not entry.marker.evaluate({"extra": ""})
    ]


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def problem_of(requirement: Requirement, modules: Mapping[str, Sequence[str]]) -> str | None:
    """Return why a requirement is not met here; None if it is.

    Args:
        requirement: A distribution and its range of versions.
        modules: Modules by distribution, of `modules_by_distribution`.
    """
    name = requirement.name
    version = installed_version(name)
    if version is None:
        return f"{name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{name} is {version}; expected {requirement.specifier}"
    names = modules.get(_normal(name), [])
    if not any(importlib.util.find_spec(module) for module in names):
        return f"{name} {version} is listed as installed, and none of its modules is there"
    return None


def modules_by_distribution() -> dict[str, list[str]]:
    """Return the top-level modules of every installed distribution, without importing them."""
    found: dict[str, list[str]] = {}
    for module, distributions in importlib.metadata.packages_distributions().items():
        for distribution in distributions:
            if module.isidentifier():
                found.setdefault(_normal(distribution), []).append(module)
    return found


def _normal(name: str) -> str:
    return name.replace("_", "-").replace(".", "-").lower()
