"""Patches of pods: their user, their nodes, their queue, and the secrets of their registry."""

from __future__ import annotations

from typing import Any

from k8s.config import DeployConfig
from k8s.placement_config import Placement
from k8s.render.components.component import Component
from k8s.render.facts import Facts, Patch
from k8s.render.kustomize import INSTANCE_LABEL, dump_yaml

ANYWHERE = Placement()
BASE_USER = 10001
"""The user of the base and of the images."""
POD = "/spec/template/spec"
# A server's kustomization has a Deployment, a load test's has a Job.
TARGET = {"kind": "Deployment|Job"}


def _patch(*operations: dict[str, Any], target: dict[str, str] = TARGET) -> list[Patch]:
    return [{"target": target, "patch": dump_yaml(list(operations))}]


def pull_secrets(facts: Facts) -> list[Patch]:
    """Return the patch that names the registry's secrets."""
    secrets = [{"name": name} for name in facts.config.image_pull_secrets]
    return _patch({"op": "add", "path": f"{POD}/imagePullSecrets", "value": secrets})


def user(facts: Facts) -> list[Patch]:
    """Return the patch that sets the user and the groups, or leaves them to the cluster."""
    paths = [f"{POD}/securityContext/{key}" for key in ("runAsUser", "runAsGroup", "fsGroup")]
    number = facts.config.run_as_user
    if number is None:
        return _patch(*({"op": "remove", "path": path} for path in paths))
    return _patch(*({"op": "replace", "path": path, "value": number} for path in paths))


def nodes(facts: Facts) -> list[Patch]:
    """Return the patch that chooses nodes, their runtime and the pods' priority."""
    wanted = facts.config.placement
    labels = dict(wanted.node_selector)
    if wanted.gpu_product is not None:
        labels["nvidia.com/gpu.product"] = wanted.gpu_product
    operations: list[dict[str, Any]] = []
    if labels:
        operations.append({"op": "add", "path": f"{POD}/nodeSelector", "value": labels})
    if wanted.priority_class is not None:
        path = f"{POD}/priorityClassName"
        operations.append({"op": "add", "path": path, "value": wanted.priority_class})
    if wanted.runtime_class is not None:
        path = f"{POD}/runtimeClassName"
        operations.append({"op": "add", "path": path, "value": wanted.runtime_class})
    tolerations = [entry.model_dump(exclude_none=True) for entry in wanted.tolerations]
    if tolerations and facts.config.overlay == "cpu":
        # A list that the overlay `gpu` has already.
        operations.append({"op": "add", "path": f"{POD}/tolerations", "value": tolerations})
    elif tolerations:
        operations += [
            {"op": "add", "path": f"{POD}/tolerations/-", "value": entry} for entry in tolerations
        ]
    return _patch(*operations)


def shares_a_node(config: DeployConfig) -> bool:
    """Return whether several pods mount a claim that only one node can mount."""
    is_for_one = config.model_claim is not None and config.model_claim_mode == "ReadWriteOnce"
    return is_for_one and config.most_pods > 1


def one_node(facts: Facts) -> list[Patch]:
    """Return the patch that keeps the pods on one node."""
    labels = {"app.kubernetes.io/name": "model-server", INSTANCE_LABEL: facts.name}
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels}}
    affinity = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    return _patch({"op": "add", "path": f"{POD}/affinity", "value": affinity})


def queue(facts: Facts) -> list[Patch]:
    """Return the patch that puts the workload into a Kueue LocalQueue."""
    path = "/metadata/labels/kueue.x-k8s.io~1queue-name"
    return _patch({"op": "add", "path": path, "value": facts.config.queue_name})


COMPONENTS: dict[str, Component] = {
    "image-pull-secrets": Component(
        wanted=lambda config: bool(config.image_pull_secrets),
        patches=pull_secrets,
        loadtest_patches=pull_secrets,
    ),
    "user": Component(
        wanted=lambda config: config.run_as_user != BASE_USER,
        patches=user,
        loadtest_patches=user,
    ),
    "placement": Component(
        wanted=lambda config: config.placement != ANYWHERE,
        patches=nodes,
    ),
    "one-node": Component(wanted=shares_a_node, patches=one_node),
    "queue": Component(
        wanted=lambda config: config.queue_name is not None,
        patches=queue,
        loadtest_patches=queue,
    ),
}
