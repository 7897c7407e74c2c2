"""The objects of the API server: server-side apply, and a Deployment's pods as scripted.

Server-side apply owns leaves per manager; a list is one leaf. A leaf that its last manager leaves
out is removed and takes its default, which only `replicas` has. A Deployment gets its pods at once.
The fault that a test gives to a part of the pod's template decides their state, so a test knows the
truth by construction.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Path = tuple[str, ...]

RESOURCES = {
    # group/version: {resource: kind}
    "v1": {
        "configmaps": "ConfigMap", "events": "Event", "namespaces": "Namespace", "pods": "Pod",
        "secrets": "Secret", "serviceaccounts": "ServiceAccount", "services": "Service",
    },
    "apps/v1": {"deployments": "Deployment", "replicasets": "ReplicaSet"},
    "batch/v1": {"jobs": "Job"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "gateway.networking.k8s.io/v1": {"httproutes": "HTTPRoute"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
}  # fmt: skip
VERSIONS = {resource: version for version, rows in RESOURCES.items() for resource in rows}
REVISION = "deployment.kubernetes.io/revision"
NOT_APPLIED = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}


class Refused(Exception):
    """The answer of the API server to a request that it does not serve."""

    def __init__(
        self, code: int, reason: str, message: str, causes: list[Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.causes = code, reason, message, causes or []


@dataclass
class Store:
    """The objects of one namespace, and what goes wrong in it.

    Attributes:
        faults: For a text in the JSON of a pod's template, the name of the fault of its pods.
        ready_s: Seconds from a pod's making until it is ready.
        logs: The log of every container.
        route_refusal: Why the gateway does not accept a route; empty if it does.
        num_stale: So many looks at a changed Deployment show the status of before the change: its
            controller has not seen it yet.
    """

    namespace: str = "tuneline"
    faults: dict[str, str] = field(default_factory=dict)
    ready_s: float = 0.05
    logs: str = "loading\nRuntimeError: no kernel image\n"
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    owners: dict[tuple[str, str], dict[str, set[Path]]] = field(default_factory=dict)
    route_refusal: str = ""
    num_stale: int = 0
    stale: dict[str, list[Object]] = field(default_factory=dict)
    """For each Deployment, how it looks to the next readers of the list."""
    looked: set[tuple[str, int]] = field(default_factory=set)
    """Names and generations of Deployments that somebody has listed."""
    made_s: dict[str, float] = field(default_factory=dict)
    num_writes: int = 0
    applied: list[str] = field(default_factory=list)
    """Kind and name of each object that was really applied, in order."""

    def apply(
        self, resource: str, name: str, wanted: Object, *, manager: str, force: bool, dry_run: bool
    ) -> Object:
        """Merge an applied configuration into an object."""
        key = (resource, name)
        live = self.objects.get(key)
        version = wanted["metadata"].get("resourceVersion")
        if version is not None and (live is None or live["metadata"]["resourceVersion"] != version):
            text = f'Operation cannot be fulfilled on {resource} "{name}"'
            raise Refused(409, "Conflict", f"{text}: the object has been modified")
        new = copy.deepcopy(live) if live is not None else self._born(wanted)
        owners = {who: set(paths) for who, paths in self.owners.get(key, {}).items()}
        leaves = {path: value for path, value in _leaves(wanted) if path not in NOT_APPLIED}
        leaves.pop(("metadata", "resourceVersion"), None)
        for path, value in leaves.items():
            others = [who for who, paths in owners.items() if who != manager and path in paths]
            if others and _read(new, path) != value:
                if not force:
                    raise _conflict(wanted, others[0], path)
                owners[others[0]].discard(path)
        held = {path for who, paths in owners.items() if who != manager for path in paths}
        for path in owners.get(manager, set()) - leaves.keys() - held:
            _remove(new, path)
        for path, value in leaves.items():
            _set(new, path, copy.deepcopy(value))
        if resource == "deployments":
            new["spec"].setdefault("replicas", 1)
        if resource == "deployments" and live is not None:
            selectors = [item["spec"]["selector"] for item in (live, new)]
            if selectors[0] != selectors[1]:
                raise Refused(422, "Invalid", "spec.selector: Invalid value: field is immutable")
        if live is None or _content(new) != _content(live):
            self.num_writes += 1
            new["metadata"]["resourceVersion"] = str(self.num_writes)
            if live is not None and new.get("spec") != live.get("spec"):
                new["metadata"]["generation"] += 1
        if not dry_run:
            owners[manager] = set(leaves)
            self.objects[key], self.owners[key] = new, owners
            self.applied.append(f"{new['kind']}/{name}")
            if resource == "httproutes":
                new["status"] = {"parents": [self._accepted(new)]}
            if resource == "deployments":
                if (
                    live is not None
                    and new["metadata"]["generation"] > (live["metadata"]["generation"])
                ):
                    self.stale[name] = [_as_before(new, live)] * self.num_stale
                self._roll_out(new)
        return new

    def create(self, resource: str, wanted: Object, *, manager: str) -> Object:
        """Store a new object."""
        name = wanted["metadata"]["name"]
        if (resource, name) in self.objects:
            raise Refused(409, "AlreadyExists", f'{resource} "{name}" already exists')
        created = self.apply(
            resource, name, wanted, manager=f"{manager}-create", force=False, dry_run=False
        )
        self.applied.pop()
        return created

    def scale(self, name: str, replicas: int) -> None:
        """Set a Deployment's replicas as `kubectl scale` does, which then owns the field."""
        key = ("deployments", name)
        self.objects[key]["spec"]["replicas"] = replicas
        self.objects[key]["metadata"]["generation"] += 1
        for paths in self.owners[key].values():
            paths.discard(("spec", "replicas"))
        self.owners[key]["kubectl"] = {("spec", "replicas")}
        self._roll_out(self.objects[key])

    def remove(self, resource: str, name: str) -> Object:
        """Remove an object, and a Deployment's ReplicaSets and pods with it."""
        found = self.objects.pop((resource, name), None)
        if found is None:
            raise _absent(resource, name)
        self.owners.pop((resource, name), None)
        if resource == "deployments":
            for key in [k for k in self.objects if k[0] in ("replicasets", "pods")]:
                if key[1].startswith(f"{name}-"):
                    del self.objects[key]
        return found

    def find(self, resource: str, name: str) -> Object:
        """Return an object as it is now."""
        self.tick()
        if (resource, name) not in self.objects:
            raise _absent(resource, name)
        return self.objects[resource, name]

    def select(self, resource: str, selector: str) -> list[Object]:
        """Return the objects of a kind that have all labels of a selector."""
        self.tick()
        pairs = [part.split("=", 1) for part in selector.split(",") if part]
        found = [
            item
            for (kind, _), item in self.objects.items()
            if kind == resource
            and all(item["metadata"].get("labels", {}).get(k) == v for k, v in pairs)
        ]
        return [self._look(item) for item in found] if resource == "deployments" else found

    def _look(self, item: Object) -> Object:
        """Return a Deployment as a reader of the list gets it, whose turn may be a stale status."""
        name = item["metadata"]["name"]
        self.looked.add((name, item["metadata"]["generation"]))
        stale = self.stale.get(name)
        return stale.pop() if stale else copy.deepcopy(item)

    def _born(self, wanted: Object) -> Object:
        """Return a new object with the fields that the server sets."""
        metadata = {
            "name": wanted["metadata"]["name"], "namespace": self.namespace,
            "uid": hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32],
            "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1, "resourceVersion": "0",
        }  # fmt: skip
        made: Object = {
            "apiVersion": wanted["apiVersion"],
            "kind": wanted["kind"],
            "metadata": metadata,
        }
        if wanted["kind"] == "Deployment":
            made["spec"] = {
                "template": {"spec": {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst"}}
            }
        if wanted["kind"] == "Service":
            made["spec"] = {"clusterIP": "10.0.0.7", "sessionAffinity": "None"}
        return made

    def _accepted(self, route: Object) -> Object:
        """Return the status of a route that the controller of its gateway writes."""
        why = self.route_refusal
        accepted = {
            "type": "Accepted", "status": "False" if why else "True", "reason": why or "Accepted",
            "message": "", "observedGeneration": route["metadata"]["generation"],
        }  # fmt: skip
        return {"parentRef": route["spec"]["parentRefs"][0], "conditions": [accepted]}

    def _roll_out(self, deployment: Object) -> None:
        """Make the pods of a Deployment's template; an earlier template keeps its ReplicaSet."""
        name, spec = deployment["metadata"]["name"], deployment["spec"]
        text = json.dumps(spec["template"], sort_keys=True)
        short = hashlib.sha256(text.encode()).hexdigest()[:10]
        sets = {
            n: o for (r, n), o in self.objects.items() if r == "replicasets" and n.startswith(name)
        }
        numbers = [int(item["metadata"]["annotations"][REVISION]) for item in sets.values()]
        newest = sets.get(f"{name}-{short}")
        number = max(numbers, default=0)
        if newest is None or int(newest["metadata"]["annotations"][REVISION]) != number:
            number += 1
        labels = {**spec["template"]["metadata"]["labels"], "pod-template-hash": short}
        metadata = {
            "name": f"{name}-{short}", "namespace": self.namespace, "labels": labels,
            "annotations": {REVISION: str(number)}, "uid": short, "resourceVersion": "1",
        }  # fmt: skip
        self.objects["replicasets", f"{name}-{short}"] = {
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": {},
        }  # fmt: skip
        deployment["metadata"].setdefault("annotations", {})[REVISION] = str(number)
        for key in [k for k in self.objects if k[0] == "pods" and k[1].startswith(f"{name}-")]:
            if not key[1].startswith(f"{name}-{short}-") or int(key[1][-1]) >= spec["replicas"]:
                del self.objects[key]
        fault = next((f for part, f in self.faults.items() if part in text), None)
        for index in range(0 if fault in ("quota", "admission") else spec["replicas"]):
            pod = f"{name}-{short}-{index}"
            if ("pods", pod) not in self.objects:
                self.made_s[pod] = time.monotonic()
                self.objects["pods", pod] = {
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {
                        "name": pod, "namespace": self.namespace, "labels": labels, "uid": pod,
                        "resourceVersion": "1",
                    },
                    "spec": spec["template"]["spec"], "status": {},
                }  # fmt: skip
                if fault == "mount":
                    self.objects["events", pod] = event(
                        "Pod", pod, "FailedMount", 'MountVolume.SetUp failed: secret "x" not found'
                    )
        self.tick()

    def tick(self) -> None:
        """Let the pods and Deployments be in the state that their age and their fault give."""
        for (resource, name), item in list(self.objects.items()):
            if resource == "pods":
                text = json.dumps(item["spec"]) + json.dumps(item["metadata"]["labels"])
                fault = next((f for part, f in self.faults.items() if part in text), None)
                age_s = time.monotonic() - self.made_s[name]
                item["status"] = pod_status(item, fault, age_s >= self.ready_s)
        for (resource, name), item in list(self.objects.items()):
            if resource == "deployments":
                text = json.dumps(item["spec"]["template"])
                fault = next((f for part, f in self.faults.items() if part in text), None)
                pods = [
                    o
                    for (r, n), o in self.objects.items()
                    if r == "pods" and n.startswith(f"{name}-")
                ]
                is_late = (name, item["metadata"]["generation"]) in self.looked
                item["status"] = deployment_status(item, pods, fault, is_late=is_late)


def event(kind: str, name: str, reason: str, message: str) -> Object:
    """Return a warning about an object."""
    return {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "tuneline"},
        "type": "Warning", "reason": reason, "message": message,
        "involvedObject": {"kind": kind, "name": name}, "lastTimestamp": "2026-01-01T00:00:00Z",
    }  # fmt: skip


def pod_status(pod: Object, fault: str | None, is_old: bool) -> Object:
    """Return the status of a pod, as the kubelet and the scheduler write it."""
    name = pod["spec"]["containers"][0]["name"]
    image = pod["spec"]["containers"][0]["image"]
    is_ready = fault is None and is_old
    conditions = [{"type": "Ready", "status": "True" if is_ready else "False"}]
    container: Object = {
        "name": name, "image": image, "ready": is_ready, "restartCount": 0,
        "state": {"running": {}},
    }  # fmt: skip
    if fault == "unschedulable":
        message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
        conditions.append(
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
            }
        )
        return {"phase": "Pending", "conditions": conditions}
    if fault == "image-pull":
        reason = "ImagePullBackOff" if is_old else "ErrImagePull"
        message = f'Back-off pulling image "{image}": not found'
        container["state"] = {"waiting": {"reason": reason, "message": message}}
    if fault == "crash":
        ended = {"exitCode": 1, "reason": "Error", "message": "the engine did not start"}
        container["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
        container.update(restartCount=3, lastState={"terminated": ended})
    if fault == "mount":
        container["state"] = {"waiting": {"reason": "ContainerCreating"}}
    phase = "Running" if fault in (None, "never", "restarts", "odd") else "Pending"
    if fault == "restarts":
        conditions[0]["status"] = "True"
        container.update(ready=True, restartCount=1)
    if fault == "odd":
        del conditions[0]["status"]
    return {"phase": phase, "conditions": conditions, "containerStatuses": [container]}


def deployment_status(
    deployment: Object, pods: list[Object], fault: str | None, *, is_late: bool
) -> Object:
    """Return the status of a Deployment, as its controller writes it.

    Args:
        is_late: Its deadline is over, so a fault that lasts is said.
    """
    ready = sum(pod["status"]["conditions"][0].get("status") == "True" for pod in pods)
    conditions: list[Object] = [
        {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}
    ]
    words = {
        "quota": 'pods "x" is forbidden: exceeded quota: team, requested: limits.cpu=4, limited: 2',
        "admission": 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsUser',
    }
    if fault in words:
        conditions.append(
            {
                "type": "ReplicaFailure",
                "status": "True",
                "reason": "FailedCreate",
                "message": words[fault],
            }
        )
    if fault == "never" and is_late:
        conditions[0] = {
            "type": "Progressing",
            "status": "False",
            "reason": "ProgressDeadlineExceeded",
        }
    return {
        "observedGeneration": deployment["metadata"]["generation"], "replicas": len(pods),
        "updatedReplicas": len(pods), "availableReplicas": ready, "readyReplicas": ready,
        "conditions": conditions,
    }  # fmt: skip


def _as_before(new: Object, live: Object) -> Object:
    """Return a changed Deployment with the status and the revision of before the change."""
    stale = copy.deepcopy(new)
    stale["status"] = copy.deepcopy(live["status"])
    stale["metadata"].setdefault("annotations", {})[REVISION] = live["metadata"]["annotations"][
        REVISION
    ]
    return stale


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


def _read(value: Any, path: Path) -> Any:
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def _set(value: Object, path: Path, leaf: Any) -> None:
    for part in path[:-1]:
        if not isinstance(value.get(part), dict):
            value[part] = {}
        value = value[part]
    value[path[-1]] = leaf


def _remove(value: Object, path: Path) -> None:
    parent = _read(value, path[:-1])
    if isinstance(parent, dict):
        parent.pop(path[-1], None)


def _content(item: Object) -> Object:
    metadata = {
        k: v for k, v in item["metadata"].items() if k not in ("resourceVersion", "generation")
    }
    return {**item, "metadata": metadata, "status": None}


def _conflict(wanted: Object, manager: str, path: Path) -> Refused:
    where = "." + ".".join(path)
    text = f'conflict with "{manager}" using {wanted["apiVersion"]}'
    message = f"Apply failed with 1 conflict: {text}: {where}"
    cause = {"reason": "FieldManagerConflict", "message": text, "field": where}
    return Refused(409, "Conflict", message, [cause])


def _absent(resource: str, name: str) -> Refused:
    return Refused(404, "NotFound", f'{resource} "{name}" not found')
