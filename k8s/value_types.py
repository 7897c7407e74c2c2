"""Types of values that the sections about Kubernetes share. No machine-learning imports."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

# RFC 1123 label: what the names of most Kubernetes objects must be.
DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
# RFC 1123 subdomain: labels with dots, as the names of Secrets may be.
DnsSubdomain = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=253
    ),
]
# Kubernetes' resource.Quantity as people write it: 4, 500m, 1.5, 24Gi.
Quantity = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value),
    Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"),
]

GPU = "nvidia.com/gpu"
GpuResource = Annotated[str, Field(pattern=r"^nvidia\.com/[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
"""A whole GPU, or a slice of one by MIG or time slicing, as NVIDIA's device plugin names it."""


def slices_problem(resource: str, number: int | None) -> str | None:
    """Say why a pod cannot use so many slices of a GPU; None if it can."""
    if resource == GPU or number in (None, 1):
        return None
    return f"gpus: {number} of {resource}: slices do not work together; expected 1"


Port = Annotated[int, Field(ge=1, le=65535)]

# RFC 1123 subdomain or an extended resource: the keys of labels, with an optional prefix.
LabelKey = Annotated[
    str,
    Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?$"),
]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?$")]

_IMAGE = re.compile(
    r"(?P<name>([\w.-]+(:[0-9]+)?/)?[a-z0-9][a-z0-9._/-]*)"
    r"(:(?P<tag>[\w][\w.-]{0,127}))?"
    r"(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def image_problem(reference: str) -> str | None:
    """Say why an image reference may name other content tomorrow; None for one that may not."""
    match = _IMAGE.fullmatch(reference)
    if match is None:
        return f"{reference!r} is not an image reference; expected NAME:TAG or NAME@sha256:DIGEST"
    if match["digest"] is None and match["tag"] in (None, "latest"):
        return f"{reference!r} can change at any time; expected NAME:TAG or NAME@sha256:DIGEST"
    return None


def _pinned(reference: str) -> str:
    if problem := image_problem(reference):
        raise ValueError(problem)
    return reference


Image = Annotated[str, AfterValidator(_pinned)]
"""An image reference with a tag or a digest."""
