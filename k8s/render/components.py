"""The components that a run's `k8s` section asks for: one row of `COMPONENTS` each.

A component is a folder of `k8s/manifests/components/`, patches that fill in values of the
configuration, or both. A new one is a field of `k8s/config.py` and a row here. A patch names its
target: an index into a list of the base breaks when somebody else adds to the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from k8s.config import DeployConfig

Patch = Mapping[str, Any]


def _no_patches(_config: DeployConfig) -> list[Patch]:
    return []


@dataclass(frozen=True)
class Component:
    """One row of the table: its part of a kustomization."""

    wanted: Callable[[DeployConfig], bool]
    folder: str | None = None
    """Below `k8s/manifests/components/`; applied to the server only."""
    patches: Callable[[DeployConfig], list[Patch]] = _no_patches
    """Entries of `patches` in the server's kustomization."""
    loadtest_patches: Callable[[DeployConfig], list[Patch]] = _no_patches
    """The same in the load test's."""


def _scraping_namespace(config: DeployConfig) -> list[Patch]:
    peer = {"matchLabels": {"kubernetes.io/metadata.name": config.monitoring_namespace}}
    rule = {"from": [{"namespaceSelector": peer}], "ports": [{"protocol": "TCP", "port": "http"}]}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "model-server-metrics"},
        "spec": {"ingress": [rule]},
    }
    return [{"patch": yaml.safe_dump(policy, sort_keys=False)}]


def _pull_secrets(config: DeployConfig) -> list[Patch]:
    secrets = [{"name": name} for name in config.image_pull_secrets]
    path = "/spec/template/spec/imagePullSecrets"
    operation = [{"op": "add", "path": path, "value": secrets}]
    # A server's kustomization has a Deployment, a load test's has a Job.
    target = {"kind": "Deployment|Job"}
    return [{"target": target, "patch": yaml.safe_dump(operation, sort_keys=False)}]


COMPONENTS: dict[str, Component] = {
    "image-pull-secrets": Component(
        wanted=lambda config: bool(config.image_pull_secrets),
        patches=_pull_secrets,
        loadtest_patches=_pull_secrets,
    ),
    "model-image": Component(
        wanted=lambda config: config.model_image is not None, folder="model-image"
    ),
    "service-monitor": Component(
        wanted=lambda config: config.monitoring_namespace is not None,
        folder="service-monitor",
        patches=_scraping_namespace,
    ),
}


def wanted_components(config: DeployConfig) -> list[Component]:
    """Return the rows that the configuration asks for, in the table's order."""
    return [component for component in COMPONENTS.values() if component.wanted(config)]
