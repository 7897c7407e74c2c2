"""Rules on every object: its labels, its names, and how an API server keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from k8s.rules.objects import DIGEST_LABEL, LABEL_LENGTH, Object, applied_size, ref

LABELS = ("name", "component", "part-of", "managed-by")
ANNOTATIONS_SIZE_BYTES = 256 * 1024
# Names of these become a part of a host name or of a label; others may have 253 characters.
LABEL_NAMES = {
    "Service", "Job", "Deployment", "HorizontalPodAutoscaler", "ScaledObject", "JobSet", "TrainJob",
    "LeaderWorkerSet",
}  # fmt: skip
BUILT_IN = ("v1", "apps/", "batch/", "autoscaling/", "policy/", "networking.k8s.io/")


def _labels(objects: Sequence[Object]) -> Iterator[str]:
    for item in objects:
        labels = item["metadata"].get("labels", {})
        wanted = [*LABELS, *(["version"] if DIGEST_LABEL in labels else [])]
        for name in wanted:
            if f"app.kubernetes.io/{name}" not in labels:
                yield f"{ref(item)}: the label app.kubernetes.io/{name} is not set"


def _lengths(objects: Sequence[Object]) -> Iterator[str]:
    for item in objects:
        name = item["metadata"]["name"]
        if item["kind"] in LABEL_NAMES and len(name) > LABEL_LENGTH:
            yield (
                f"{ref(item)}: the name has {len(name)} characters; expected at most {LABEL_LENGTH}"
            )
        for key, value in item["metadata"].get("labels", {}).items():
            if len(value) > LABEL_LENGTH:
                yield (
                    f"{ref(item)}: the label {key} has {len(value)} characters; expected at most "
                    f"{LABEL_LENGTH}"
                )


def _kept(objects: Sequence[Object]) -> Iterator[str]:
    """An API server drops an empty list, so that every apply of it would report a change."""
    for item in objects:
        if item["apiVersion"].startswith(BUILT_IN):
            for path in _empty(item, ""):
                yield f"{ref(item)}: {path} is an empty list; leave it out"


def _empty(value: Any, path: str) -> Iterator[str]:
    if value == []:
        yield path.lstrip(".")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _empty(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _empty(inner, f"{path}.{index}")


def _size(objects: Sequence[Object]) -> Iterator[str]:
    for item in objects:
        if (size := applied_size(item)) > ANNOTATIONS_SIZE_BYTES:
            yield (
                f"{ref(item)}: `kubectl apply` would keep a copy of {size:,} bytes; an "
                f"annotation takes {ANNOTATIONS_SIZE_BYTES:,}"
            )


RULES = (_labels, _lengths, _kept, _size)
