"""A row of the table of components: the part of a run's manifests that one component adds.

A component is a folder of `k8s/manifests/components/`, patches, or both. Its manifests are valid
with their example values. `fill` puts a run's values into the parsed manifests. A patch names its
target: an index into a list of the base breaks when somebody else adds to the list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from k8s.config import DeployConfig
from k8s.render.facts import Facts, Files, Patch


def _no_patches(_facts: Facts) -> list[Patch]:
    return []


def _as_it_is(_files: Files, _facts: Facts) -> None:
    return


@dataclass(frozen=True)
class Component:
    """One row of the table: its part of a kustomization."""

    wanted: Callable[[DeployConfig], bool]
    folder: str | None = None
    """Below `k8s/manifests/components/`; applied to the server only."""
    fill: Callable[[Files, Facts], None] = _as_it_is
    """Puts the run's values into the folder's files."""
    patches: Callable[[Facts], list[Patch]] = _no_patches
    """Entries of `patches` in the server's kustomization."""
    loadtest_patches: Callable[[Facts], list[Patch]] = _no_patches
    """The same in the load test's."""
