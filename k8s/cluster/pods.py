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
    "Failed": 60.0,
}
"""Seconds that a reason may last before the rollout counts as failed. A reason that is not in the
table may last until the rollout's deadline: an unschedulable pod may wait for a new node."""
ENDED = "Terminated"


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
        return Trouble(name, "Failed", f"{status.get('reason', '')} {status.get('message', '')}")
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


def find_creation_trouble(objects: Sequence[Object]) -> Trouble | None:
    """Return why a Deployment or a ReplicaSet cannot make pods: a quota, an admission, a right."""
    for item in objects:
        for condition in item.get("status", {}).get("conditions", []):
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                where = f"{item['kind']}/{item['metadata']['name']}"
                reason = condition.get("reason", "FailedCreate")
                return Trouble(where, reason, condition.get("message", ""))
    return None
