"""A model over several hosts: the Deployment of a rendered tree as a LeaderWorkerSet."""

from __future__ import annotations

import copy
from typing import Any

from k8s.config import DeployConfig
from k8s.render.facts import Document
from k8s.rules.objects import QUEUE_LABEL

ROLE = "tuneline/role"
MASTER_PORT = 29501
FIRST_FREE_PORT, LAST_PORT = 1024, 65535
API = "leaderworkerset.x-k8s.io/v1"
OF_THE_API = ("ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle")
"""Fields of a container that answers requests; a worker answers none."""


def leader_worker_set(objects: list[Document], config: DeployConfig) -> list[Document]:
    """Return the objects with a LeaderWorkerSet in the place of the Deployment.

    The leader is the API server and the first host of vLLM. The Service and the monitors select the
    leaders only; the pods of a group reach one another. The budget counts every pod, because the
    eviction of a worker ends its whole group.
    """
    made = []
    for item in objects:
        if item["kind"] == "Deployment":
            made.append(_workload(item, config.hosts))
        elif item["kind"] == "Service":
            made.append(_selecting_leaders(item, ("spec", "selector")))
        elif item["kind"] == "InferencePool":
            made.append(_selecting_leaders(item, ("spec", "selector", "matchLabels")))
        elif "scaleTargetRef" in item.get("spec", {}):
            made.append(_scaling(item))
        else:
            made.append(item)
    (workload,) = (item for item in made if item["kind"] == "LeaderWorkerSet")
    return [*made, _between_hosts(workload)]


def _workload(deployment: Document, hosts: int) -> Document:
    spec = deployment["spec"]
    made = {
        "replicas": spec.get("replicas"),
        # Each group gets a headless Service of its own, under its leader's name. One for all groups
        # would have the name of the tree's Service: its controller then makes none, and no host
        # finds the leader.
        "networkConfig": {"subdomainPolicy": "UniquePerReplica"},
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": dict(spec["strategy"]["rollingUpdate"]),
        },
        # A part of a group cannot answer: all of its pods start again.
        "leaderWorkerTemplate": {
            "size": hosts,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": _pod(spec["template"], "leader", hosts),
            "workerTemplate": _pod(spec["template"], "worker", hosts),
        },
    }
    return {
        "apiVersion": API,
        "kind": "LeaderWorkerSet",
        "metadata": deployment["metadata"],
        "spec": {key: value for key, value in made.items() if value is not None},
    }


def _pod(template: Document, role: str, hosts: int) -> Document:
    """Return the pod of a host: vLLM with its place in the group."""
    made = copy.deepcopy(template)
    made["metadata"]["labels"][ROLE] = role
    spec = made["spec"]
    # Two groups may share a node, and the hosts of one group may not be forced apart.
    spec.pop("topologySpreadConstraints", None)
    (container,) = spec["containers"]
    rank = "0" if role == "leader" else "$(LWS_WORKER_INDEX)"
    container["args"] += [
        f"--nnodes={hosts}",
        f"--node-rank={rank}",
        "--master-addr=$(LWS_LEADER_ADDRESS)",
        f"--master-port={MASTER_PORT}",
    ]
    address = {"fieldRef": {"fieldPath": "status.podIP"}}
    container["env"].append({"name": "VLLM_HOST_IP", "valueFrom": address})
    if role == "worker":
        container["args"].append("--headless")
        for field in OF_THE_API:
            container.pop(field, None)
    return made


def _selecting_leaders(item: Document, path: tuple[str, ...]) -> Document:
    made = copy.deepcopy(item)
    found: Any = made
    for key in path:
        found = found[key]
    found[ROLE] = "leader"
    return made


def _scaling(item: Document) -> Document:
    made = copy.deepcopy(item)
    made["spec"]["scaleTargetRef"] |= {"apiVersion": API, "kind": "LeaderWorkerSet"}
    return made


def _between_hosts(workload: Document) -> Document:
    """Return the policy by which the pods of the server reach one another and DNS."""
    template = workload["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    labels = {
        key: value
        for key, value in template["metadata"]["labels"].items()
        if key in ("app.kubernetes.io/name", "app.kubernetes.io/instance")
    }
    peers = [{"podSelector": {"matchLabels": labels}}]
    free = [{"protocol": "TCP", "port": FIRST_FREE_PORT, "endPort": LAST_PORT}]
    names = [
        {"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")
    ]
    metadata = copy.deepcopy(workload["metadata"])
    metadata["name"] += "-hosts"
    metadata["labels"].pop(QUEUE_LABEL, None)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": free}],
            "egress": [{"to": peers, "ports": free}, {"ports": names}],
        },
    }
