"""Why a pod is not ready, in the cluster's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from k8s.cluster.kubectl import Object
from k8s.rules.objects import QUEUE_LABEL
from tuneline.core.secrets import hide_secrets

Pod = Mapping[str, Any]

PATIENCE_S = {
    "InvalidImageName": 0.0,
    "CrashLoopBackOff": 0.0,
    "ErrImagePull": 60.0,
    "ImagePullBackOff": 60.0,
    "CreateContainerConfigError": 60.0,
    "CreateContainerError": 60.0,
    "RunContainerError": 60.0,
    "FailedCreate": 60.0,
    "Paused": 0.0,
    "FailedMount": 300.0,
    "FailedAttachVolume": 300.0,
    "FailedCreatePodSandBox": 300.0,
}
"""Seconds that a reason may last before the rollout counts as failed. A reason that is not in the
table may last until the rollout's deadline: an unschedulable pod may wait for a new node, and a pod
that a node has evicted (Failed) has a successor already."""
ENDED = "Terminated"
_IN_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
"""Reasons that no status of a pod has. The kubelet says them in events."""
_BEFORE_START = ("ContainerCreating", "PodInitializing")


@dataclass(frozen=True)
class Trouble:
    """The reason why a pod, or a Deployment without pods, is not ready."""

    object: str
    """The pod's name, or kind and name of the object that cannot make pods."""
    reason: str
    words: str
    container: str | None = None
    """The container that fails, if it is one."""

    def line(self) -> str:
        """Return the trouble in one line."""
        container = f", container {self.container}" if self.container else ""
        return f"{self.object}{container}: {self.reason}" + (
            f": {self.words}" if self.words else ""
        )


def is_ready(pod: Pod) -> bool:
    """Return whether a pod is ready and not about to end."""
    conditions = pod.get("status", {}).get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        one["type"] == "Ready" and one["status"] == "True" for one in conditions
    )


def find_trouble(pod: Pod) -> Trouble | None:
    """Return why a pod is not ready; None if it is ready, or starts without a complaint.

    A container's last words may be lines of its log, so secrets in them are hidden.
    """
    found = _find_trouble(pod)
    return None if found is None else replace(found, words=hide_secrets(found.words))


def _find_trouble(pod: Pod) -> Trouble | None:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if is_ready(pod):
        return None
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            reason = condition.get("reason", "Unschedulable")
            held = reason == "SchedulingGated"
            return Trouble(name, reason, _gates(pod) if held else condition.get("message", ""))
    kinds = ("initContainerStatuses", "containerStatuses")
    for one in (container for kind in kinds for container in status.get(kind, [])):
        waiting = one.get("state", {}).get("waiting", {})
        ended = one.get("state", {}).get("terminated") or one.get("lastState", {}).get("terminated")
        reason = waiting.get("reason", "")
        if reason in PATIENCE_S:
            words = (
                _end_words(ended) if reason == "CrashLoopBackOff" else waiting.get("message", "")
            )
            return Trouble(name, reason, words, one["name"])
        if ended and ended.get("exitCode", 0) != 0:
            return Trouble(name, ENDED, _end_words(ended), one["name"])
    if status.get("phase") == "Failed":
        words = f"{status.get('reason', '')} {status.get('message', '')}".strip()
        return Trouble(name, "Failed", words)
    return None


def _gates(pod: Pod) -> str:
    """Return who holds a pod back: the scheduler's own words name nobody."""
    gates = ", ".join(one["name"] for one in pod.get("spec", {}).get("schedulingGates", []))
    queue = pod["metadata"].get("labels", {}).get(QUEUE_LABEL)
    if queue is None:
        return f"held by {gates}" if gates else ""
    return (
        f"the queue {queue} has not admitted it (kubectl describe localqueue {queue}, "
        "kubectl get workloads)"
    )


def _end_words(ended: Mapping[str, Any] | None) -> str:
    """Return how a container ended: its exit code, the reason, and its own message."""
    if not ended:
        return ""
    words = f"exit code {ended.get('exitCode')}"
    if ended.get("reason") not in (None, "Error", "Completed"):
        words += f" ({ended['reason']})"
    message = str(ended.get("message", "")).strip()
    return f"{words}: {message}" if message else words


def is_before_start(pod: Pod) -> bool:
    """Return whether the kubelet prepares a container of a pod, and none runs."""
    status = pod.get("status", {})
    kinds = ("initContainerStatuses", "containerStatuses")
    states = [one.get("state", {}) for kind in kinds for one in status.get(kind, [])]
    reasons = [state.get("waiting", {}).get("reason") for state in states]
    return any(reason in _BEFORE_START for reason in reasons) and not any(
        "running" in state for state in states
    )


def find_event_trouble(pod: Pod, events: Sequence[Object]) -> Trouble | None:
    """Return what the kubelet's last event about a pod before its start complains about."""
    own = [
        one for one in events if one["involvedObject"].get("name") == pod["metadata"]["name"]
    ]  # fmt: skip
    if not own or not is_before_start(pod):
        return None
    last = max(own, key=event_time)
    if last.get("reason") not in _IN_EVENTS:
        return None
    return Trouble(
        pod["metadata"]["name"], last["reason"], hide_secrets(str(last.get("message", "")))
    )


def event_time(event: Mapping[str, Any]) -> str:
    """Return when an event was seen last, in a form that can be sorted."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def slow_words(pod: Pod) -> tuple[str, str | None]:
    """Return what keeps a pod without a trouble from being ready, and the container that does."""
    status = pod.get("status", {})
    for one in status.get("initContainerStatuses", []):
        if "running" in one.get("state", {}):
            return f"its init container {one['name']} still runs", one["name"]
    if is_before_start(pod):
        return "its image is being pulled, or its volumes are being mounted", None
    for condition in status.get("conditions", []):
        if condition["type"] == "Ready" and condition.get("reason") == "ReadinessGatesNotReady":
            return f"its readiness gates are not met: {condition.get('message', '')}", None
    running = [one for one in status.get("containerStatuses", []) if "running" in one["state"]]
    for one in running:
        if not one.get("ready"):
            return "started, and its readiness probe fails", one["name"]
    return "waits for the scheduler or the kubelet", None


def find_creation_trouble(objects: Sequence[Object]) -> Trouble | None:
    """Return why a Deployment or a ReplicaSet makes no pods: a pause, a quota, an admission."""
    for item in objects:
        if item.get("spec", {}).get("paused"):
            where = f"{item['kind']}/{item['metadata']['name']}"
            return Trouble(where, "Paused", "kubectl rollout resume lets it go on")
        for condition in item.get("status", {}).get("conditions", []):
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                where = f"{item['kind']}/{item['metadata']['name']}"
                reason = condition.get("reason", "FailedCreate")
                return Trouble(where, reason, condition.get("message", ""))
    return None
