"""The section `k8s` of run.yaml. No machine-learning imports."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tuneline.core.config import StrictModel

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
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]

# Values that the base fixes for the server's container; the arguments must match them.
MODEL_DIR = "/model"
HOST = "0.0.0.0"  # noqa: S104 (the pod's own network; a NetworkPolicy and a key guard it)
PORT = 8000

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


class Resources(StrictModel):
    """The resources of one server pod; a field that is left out keeps the overlay's value."""

    cpu: Quantity | None = None
    """Cores, e.g. `4`: requested, and on the CPU overlay also the limit."""
    memory: Quantity | None = None
    """Requested and limit, e.g. `24Gi`."""
    gpus: int | None = Field(default=None, ge=1)
    """`nvidia.com/gpu`, only with the overlay `gpu`."""


class DeployConfig(StrictModel):
    """The values that `tuneline deploy render` fills into the manifests."""

    namespace: DnsLabel = "tuneline"
    overlay: Literal["cpu", "gpu"] = "gpu"
    image: str | None = None
    """The server's image, built from `k8s/images/Dockerfile.cpu` or `Dockerfile.gpu`; needed to
    render. Pin it by digest for production."""
    loadtest_image: str | None = None
    """The image of `k8s/images/Dockerfile.loadtest`; without it no load-test Job is rendered."""
    load_pods: int = Field(default=1, ge=1, le=256)
    """How many pods share the load test's schedule; more than one where one client's cores do not
    carry the rate. The load test then runs one scenario."""
    results_claim: DnsLabel | None = None
    """The PersistentVolumeClaim that keeps the load test's reports; with several load pods it is
    needed, and all of them mount it (ReadWriteMany)."""
    replicas: int = Field(default=1, ge=1)
    model_claim: DnsLabel | None = None
    """The PersistentVolumeClaim that holds the model folder. Exclusive with `model_image`."""
    model_path: str | None = Field(default=None, pattern=r"^[\w.-]+(/[\w.-]+)*$")
    """The model folder inside the claim; `<run name>-<first 12 digits of the digest>` by default,
    so that versions lie side by side and a rollback finds the earlier one."""
    model_image: str | None = None
    """An OCI image that holds the model folder at its root, mounted as an image volume
    (Kubernetes 1.35 or later). Exclusive with `model_claim`."""
    secret_name: DnsLabel = "tuneline-api-key"  # noqa: S105 (a name)
    """The Secret whose key `api-key` is the server's API key; it is created by hand."""
    image_pull_secrets: tuple[DnsSubdomain, ...] = ()
    """Secrets of type `kubernetes.io/dockerconfigjson` in the namespace, for images in a private
    registry: the server's, the model's and the load test's."""
    resources: Resources = Resources()
    monitoring_namespace: DnsLabel | None = None
    """Where a Prometheus operator runs: adds a ServiceMonitor and lets that namespace scrape."""

    @field_validator("image", "loadtest_image", "model_image")
    @classmethod
    def _pinned(cls, reference: str | None) -> str | None:
        if reference is not None and (problem := image_problem(reference)):
            raise ValueError(problem)
        return reference

    @field_validator("model_path")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        if path is not None and {".", ".."} & set(path.split("/")):
            raise ValueError(f"{path!r} leaves the volume; expected a folder inside it")
        return path

    @model_validator(mode="after")
    def _consistent(self) -> DeployConfig:
        if self.model_claim is not None and self.model_image is not None:
            raise ValueError("model_claim and model_image exclude one another; give one of them")
        if self.model_path is not None and self.model_claim is None:
            raise ValueError("model_path is a folder inside model_claim; give model_claim too")
        if self.load_pods > 1 and self.results_claim is None:
            raise ValueError(
                "load_pods above 1 needs results_claim: the volume claim (ReadWriteMany) through "
                "which the load pods begin together and join their results"
            )
        if self.resources.gpus is not None and self.overlay == "cpu":
            raise ValueError("resources.gpus needs overlay: gpu")
        return self
