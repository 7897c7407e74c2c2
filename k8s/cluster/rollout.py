"""Wait for a rollout in bounded time, and say why it does not come."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from k8s.cluster.changes import REVISION
from k8s.cluster.kubectl import Cluster, Object, get, read_log
from k8s.cluster.pods import (
    ENDED,
    PATIENCE_S,
    Pod,
    Trouble,
    find_creation_trouble,
    find_event_trouble,
    find_trouble,
    is_before_start,
    is_ready,
    slow_words,
)
from k8s.cluster.refusals import is_transient, is_unreachable, missing_right
from k8s.render.kustomize import INSTANCE_LABEL
from tuneline.core.errors import ServerError
from tuneline.core.progress import logger, progress

POLL_S = 2.0
MAX_FAILURES = 4
"""Requests in a row that may fail while the rollout goes on."""
MAX_LOGS = 3
"""Containers whose log is shown: pods of one version fail alike."""
DEADLINE_MARGIN_S = 30.0
"""After the Deployment's own deadline, its controller says that it was exceeded."""
_SIZES = {
    "Deployment": "replicas",
    "HorizontalPodAutoscaler": "maxReplicas",
    "ScaledObject": "maxReplicaCount",
}
"""The field with the number of pods, for each kind that has one."""


@dataclass(frozen=True)
class Rollout:
    """A Deployment with its ReplicaSets and pods, at one time.

    Attributes:
        events: Events of pods, if one of them has a node and does not start.
    """

    deployment: Object
    replica_sets: list[Object] = field(default_factory=list)
    pods: list[Object] = field(default_factory=list)
    events: list[Object] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        """Return how many pods the Deployment asks for."""
        return int(self.deployment["spec"].get("replicas", 1))

    @property
    def status(self) -> Mapping[str, Any]:
        """Return the Deployment's status."""
        found: Mapping[str, Any] = self.deployment.get("status", {})
        return found

    def is_observed(self) -> bool:
        """Return whether the status is about the newest version of the Deployment."""
        generation: int = self.deployment["metadata"].get("generation", 0)
        return int(self.status.get("observedGeneration", 0)) >= generation

    def is_done(self) -> bool:
        """Return whether all pods are of the newest version and available."""
        updated = self.status.get("updatedReplicas", 0)
        return (
            self.is_observed()
            and updated >= self.wanted
            and self.status.get("replicas", 0) == updated
            and self.status.get("availableReplicas", 0) >= self.wanted
        )

    def late_condition(self) -> Mapping[str, Any] | None:
        """Return the condition that says that the Deployment's own deadline has passed."""
        found: Sequence[Mapping[str, Any]] = self.status.get("conditions", [])
        for one in found:
            if one["type"] == "Progressing" and one.get("reason") == "ProgressDeadlineExceeded":
                return one
        return None

    def is_too_late(self) -> bool:
        """Return whether the Deployment's own deadline has passed."""
        return self.is_observed() and self.late_condition() is not None

    def newest_pods(self) -> list[Object]:
        """Return the pods of the newest version."""
        number = self.deployment["metadata"].get("annotations", {}).get(REVISION)
        hashes = {
            item["metadata"]["labels"].get("pod-template-hash")
            for item in self.replica_sets
            if item["metadata"].get("annotations", {}).get(REVISION) == number
        }
        return [
            pod for pod in self.pods
            if pod["metadata"]["labels"].get("pod-template-hash") in hashes
        ]  # fmt: skip

    def troubles(self) -> list[Trouble]:
        """Return why pods of the newest version are not ready.

        A pod that is being removed has no say. Of pods that have failed and have successors, the
        first one stands for all.
        """
        pods = [p for p in self.newest_pods() if "deletionTimestamp" not in p["metadata"]]
        failed = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
        found = [self.trouble_of(pod) for pod in pods if pod not in failed[1:]]
        made = find_creation_trouble([self.deployment, *self.replica_sets])
        return [one for one in [made, *found] if one is not None]

    def trouble_of(self, pod: Pod) -> Trouble | None:
        """Return why a pod is not ready, in the words of its status or of its events."""
        return find_trouble(pod) or find_event_trouble(pod, self.events)


def read_rollout(cluster: Cluster, server: str, run: str) -> Rollout | None:
    """Return the rollout of a run's server; None if it has no Deployment."""
    selector = f"--selector={INSTANCE_LABEL}={run},app.kubernetes.io/name=model-server"
    found = get(cluster, "deployments,replicasets,pods", selector)
    deployments = [item for item in found if item["kind"] == "Deployment"]
    own = [item for item in deployments if item["metadata"]["name"] == server]
    if not own:
        return None
    pods = [item for item in found if item["kind"] == "Pod"]
    return Rollout(
        own[0],
        [item for item in found if item["kind"] == "ReplicaSet"],
        pods,
        _read_events(cluster) if any(is_before_start(pod) for pod in pods) else [],
    )


def _read_events(cluster: Cluster) -> list[Object]:
    """Return the events of pods; none without the right to list them."""
    try:
        return get(cluster, "events", "--field-selector=involvedObject.kind=Pod")
    except ServerError as error:
        if missing_right(error) is None:
            raise
        return []


def rollout_limit_s(objects: Sequence[Mapping[str, Any]]) -> float:
    """Return how long a rollout may take: the Deployment's own deadline per pod and a margin.

    The deadline restarts with each pod that becomes ready. An autoscaler may ask for its maximum.

    Args:
        objects: The objects of the new version and of what it replaces; the most pods count.
    """
    deadline_s, num_pods = 0.0, 1
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] == "Deployment":
            deadline_s = max(deadline_s, float(spec.get("progressDeadlineSeconds", 600)))
        if item["kind"] in _SIZES:
            num_pods = max(num_pods, int(spec.get(_SIZES[item["kind"]], 1)))
    return (deadline_s or 600.0) * num_pods + DEADLINE_MARGIN_S


def wait_for_rollout(cluster: Cluster, server: str, run: str, *, timeout_s: float) -> Rollout:
    """Return the rollout when all pods are of the newest version and available.

    A reason that does not go away by itself ends the waiting before the deadline. The version that
    is being left is not judged: its pods are the newest until the controller has seen the change,
    and its passed deadline stays in the status until the new version makes progress.

    Raises:
        ServerError: The rollout does not come. The message has the reasons and the last lines of
            the failing container's log.
    """
    started_s = time.monotonic()
    since: dict[tuple[str, str], float] = {}
    num_failures = num_absent = 0
    rollout: Rollout | None = None
    num_looks, left = 0, None
    with progress("rollout", unit="pods ready") as advance:
        while True:
            waited_s = time.monotonic() - started_s
            try:
                rollout = read_rollout(cluster, server, run)
                num_failures = 0
            except ServerError as error:
                num_failures += 1
                passes = is_unreachable(error) or is_transient(error.message)
                if num_failures > MAX_FAILURES or not passes:
                    raise
            if rollout is not None and num_failures == 0:
                if rollout.is_done():
                    return rollout
                num_looks, late = num_looks + 1, rollout.late_condition()
                left = late if num_looks == 1 or late is None else left
                is_seen = rollout.is_observed()
                troubles = rollout.troubles() if is_seen else []
                _notice(troubles, since)
                ready = sum(is_ready(pod) for pod in rollout.newest_pods()) if is_seen else 0
                advance(ready, f"of {rollout.wanted}" + "".join(f"; {t.reason}" for t in troubles))
                is_late = is_seen and late != left
                if is_late or any(_is_final(one, since) for one in troubles):
                    raise _failure(cluster, server, rollout, waited_s)
            num_absent = num_absent + 1 if rollout is None and num_failures == 0 else 0
            if waited_s > timeout_s or num_absent > MAX_FAILURES:
                raise _failure(cluster, server, rollout, waited_s)
            time.sleep(POLL_S)


def _notice(troubles: Sequence[Trouble], since: dict[tuple[str, str], float]) -> None:
    """Log each reason when it comes, and remember since when it lasts."""
    now_s = time.monotonic()
    keys = {(one.object, one.reason): one for one in troubles}
    for key in [key for key in since if key not in keys]:
        del since[key]
    for key, one in keys.items():
        if key not in since:
            since[key] = now_s
            logger.info("  %s", one.line())


def _is_final(one: Trouble, since: Mapping[tuple[str, str], float]) -> bool:
    patience_s = PATIENCE_S.get(one.reason)
    key = (one.object, one.reason)
    return patience_s is not None and time.monotonic() - since[key] >= patience_s


def _failure(
    cluster: Cluster, server: str, rollout: Rollout | None, waited_s: float
) -> ServerError:
    """Return why a rollout failed, with the log of a container that ended."""
    if rollout is None:
        return ServerError(
            f"deployment {server}: is not in {cluster.where} after {waited_s:.0f} s; somebody else "
            "removed it, or its namespace is being deleted"
        )
    if not rollout.is_observed():
        return ServerError(
            f"deployment {server}: its controller has not seen the change after {waited_s:.0f} s"
        )
    ready = sum(is_ready(pod) for pod in rollout.newest_pods())
    lines = [
        f"deployment {server}: {ready} of {rollout.wanted} new pods are ready "
        f"after {waited_s:.0f} s"
    ]
    troubles, num_logs = rollout.troubles(), 0
    for one in troubles:
        lines.append(f"  {one.line()}")
        ended = one.reason in (ENDED, "CrashLoopBackOff")
        if one.container is not None and ended and num_logs < MAX_LOGS:
            num_logs += 1
            lines += [f"    {text}" for text in read_log(cluster, one.object, one.container)]
    for pod in rollout.newest_pods():
        if not troubles and not is_ready(pod):
            words, container = slow_words(pod)
            lines.append(f"  {pod['metadata']['name']}: {words}")
            if container is not None and num_logs < MAX_LOGS:
                num_logs += 1
                found = read_log(cluster, pod["metadata"]["name"], container)
                lines += [f"    {text}" for text in found]
    return ServerError("\n".join(lines))
