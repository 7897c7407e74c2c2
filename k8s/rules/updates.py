"""The fields that an API server refuses to change in an object that exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from k8s.rules.objects import Object, namespace, ref

# Fields that no update may change, by kind. A Job is deleted before it is applied again.
FIXED: dict[str, tuple[tuple[str, ...], ...]] = {
    "Deployment": (("spec", "selector"),),
    "PersistentVolumeClaim": (
        ("spec", "accessModes"),
        ("spec", "storageClassName"),
        ("spec", "volumeMode"),
    ),
}


def check_update(before: Sequence[Object], after: Sequence[Object]) -> Iterator[str]:
    """Yield one sentence for each field that `kubectl apply` of `after` could not change.

    Args:
        before: The objects in the cluster, as an earlier rendering gave them.
        after: The objects that would be applied.
    """
    old = {(ref(item), namespace(item)): item for item in before}
    for item in after:
        known = old.get((ref(item), namespace(item)))
        for path in FIXED.get(item["kind"], ()):
            if known is not None and _at(known, path) != _at(item, path):
                yield (
                    f"{ref(item)}: {'.'.join(path)} changes from {_at(known, path)} to "
                    f"{_at(item, path)}; an API server refuses that"
                )


def _at(item: Object, path: Sequence[str]) -> Any:
    found: Any = item
    for key in path:
        found = found.get(key, {}) if isinstance(found, dict) else {}
    return found
