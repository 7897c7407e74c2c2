"""The state of a run in the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import Field

from k8s.cluster.changes import RELEASE
from k8s.cluster.kubectl import IN_CLUSTER, Cluster, Object, get
from k8s.cluster.pods import event_time, is_ready
from k8s.cluster.refusals import missing_right
from k8s.cluster.revisions import History, is_under_way, read_record
from k8s.cluster.rollout import Rollout, read_rollout
from k8s.cluster.routes import route_problems
from k8s.cluster.shares import read_routes, weights_of
from k8s.render.facts import server_name
from k8s.rules.objects import DIGEST_LABEL
from tuneline.core.config import StrictModel
from tuneline.core.errors import ServerError
from tuneline.core.secrets import hide_secrets

NUM_EVENTS = 5
PARTS = ("model-server", "load-test", "train", "search")
"""The objects of a run have its name and one of these."""

Found = TypeVar("Found")


class PodState(StrictModel):
    """One pod of the server."""

    name: str
    is_ready: bool
    is_newest: bool
    """It belongs to the newest version of the Deployment."""
    why: str
    """Why it is not ready."""


class Scaling(StrictModel):
    """A HorizontalPodAutoscaler, which KEDA makes too."""

    name: str
    min_replicas: int
    max_replicas: int
    current: int
    desired: int
    why: str
    """Its conditions that are not met."""


class ClusterState(StrictModel):
    """A run in a cluster, with the local release for comparison."""

    context: str | None
    namespace: str
    server: str
    exists: bool
    release: str | None = None
    """The annotation of the Deployment."""
    model_digest: str | None = None
    local_release: str | None = None
    is_current: bool = False
    """The release in the cluster is the local one."""
    is_ready: bool = False
    """Every pod is of the newest version and available."""
    rollout: str = ""
    pods: list[PodState] = Field(default=[])
    scaling: list[Scaling] = Field(default=[])
    weights: dict[str, int] = Field(default={})
    """Of the run's route, by Service or pool."""
    route_problem: str = ""
    """Why no request comes by the route; empty if each gateway accepts it."""
    history: History | None = None
    events: list[str] = Field(default=[])
    missing_rights: list[str] = Field(default=[])
    """Rights that the user lacks, such as `list events`: their objects are not in here."""

    def lines(self) -> list[str]:
        """Return the state for people."""
        lines = [f"{self.server}: context {self.context or IN_CLUSTER}, namespace {self.namespace}"]
        if not self.exists:
            return [
                *lines,
                "  not deployed; to deploy it, type: tuneline deploy apply RUN.yaml",
                *self._history_lines(),
                *self._right_lines(),
            ]
        local = "the local release" if self.is_current else f"local: {self.local_release or 'none'}"
        lines += [f"  release {self.release or 'none'} ({local})", f"  model {self.model_digest}"]
        lines.append(f"  rollout: {self.rollout}")
        for pod in self.pods:
            state = "ready" if pod.is_ready else f"not ready: {pod.why or 'it starts'}"
            lines.append(f"  pod {pod.name}: {state}" + ("" if pod.is_newest else " (old version)"))
        for one in self.scaling:
            sizes = f"{one.current} pods, wants {one.desired} of {one.min_replicas} to"
            lines.append(f"  autoscaler {one.name}: {sizes} {one.max_replicas} {one.why}".rstrip())
        if self.weights:
            shares = ", ".join(f"{name} {weight}" for name, weight in self.weights.items())
            problem = f"; {self.route_problem}" if self.route_problem else ""
            lines.append(f"  route: {shares}{problem}")
        events = [f"  event: {text}" for text in self.events]
        return [*lines, *self._history_lines(), *events, *self._right_lines()]

    def _right_lines(self) -> list[str]:
        if not self.missing_rights:
            return []
        rights = ", ".join(self.missing_rights)
        return [f"  not shown: you have no right to {rights} (docs/deploy.md lists the rights)"]

    def _history_lines(self) -> list[str]:
        lines = []
        for revision in self.history.revisions if self.history else []:
            mark = "*" if self.history and revision.number == self.history.current else " "
            why = f": {revision.why.splitlines()[0]}" if revision.why else ""
            when = f"{revision.applied_at} by {revision.applied_by}"
            state: str = revision.state
            if state == "applying" and not is_under_way(revision):
                state = "applying (its process has ended)"
            lines.append(f" {mark}{revision.words()}, {state}, {when}{why}")
        if self.history and self.history.going_to:
            lines.append(
                f"  a roll-back to revision {self.history.going_to} has not ended; to finish it, "
                "type: tuneline deploy roll-back RUN.yaml"
            )
        return lines


def read_state(cluster: Cluster, run: str, local_release: str | None) -> ClusterState:
    """Return the state of a run's server.

    Without a right to read the record, the autoscaler, the route or the events, the rest is shown.

    Raises:
        ServerError: The cluster does not answer, or refuses.
        ArtifactError: The record in the cluster is damaged.
    """
    server = server_name(run)
    where: dict[str, Any] = {
        "context": cluster.context, "namespace": cluster.namespace, "server": server,
    }  # fmt: skip
    missing: list[str] = []
    record = _read(lambda: read_record(cluster, server, run), missing)
    history = None if record is None else record.history
    rollout = read_rollout(cluster, server, run)
    if rollout is None:
        return ClusterState(
            **where, exists=False, local_release=local_release,
            history=history if history and history.revisions else None, missing_rights=missing,
        )  # fmt: skip
    annotations = rollout.deployment["metadata"].get("annotations", {})
    release = annotations.get(RELEASE)
    newest = {pod["metadata"]["name"] for pod in rollout.newest_pods()}
    scaling = _read(lambda: _scaling(cluster, server), missing) or []
    routes = _read(lambda: read_routes(cluster, server), missing) or []
    weights = weights_of(routes, server)
    events = _read(lambda: _events(cluster, run), missing) or []
    return ClusterState(
        **where,
        exists=True,
        release=release,
        model_digest=annotations.get(DIGEST_LABEL),
        local_release=local_release,
        is_current=release is not None and release == local_release,
        is_ready=rollout.is_done(),
        rollout=_rollout_words(rollout),
        pods=[_pod_state(rollout, pod, newest) for pod in rollout.pods],
        scaling=scaling,
        weights=weights,
        route_problem=route_problems(routes) if weights else "",
        history=history if history and history.revisions else None,
        events=events,
        missing_rights=missing,
    )


def _read(read: Callable[[], Found], missing: list[str]) -> Found | None:
    """Return what a function reads; None if the user has no right to it, which is noted."""
    try:
        return read()
    except ServerError as error:
        right = missing_right(error)
        if right is None:
            raise
        missing.append(right)
        return None


def _rollout_words(rollout: Rollout) -> str:
    status = rollout.status
    if rollout.is_done():
        return f"complete, {status.get('availableReplicas', 0)} of {rollout.wanted} pods available"
    state = "failed: its deadline has passed" if rollout.is_too_late() else "under way"
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    words = f"{state}; {updated} of {rollout.wanted} pods are new, {available} available"
    reasons = [t.line() for t in rollout.troubles() if t.container is None]
    return "; ".join([words, *reasons])


def _pod_state(rollout: Rollout, pod: Object, newest: set[str]) -> PodState:
    trouble = rollout.trouble_of(pod)
    return PodState(
        name=pod["metadata"]["name"],
        is_ready=is_ready(pod),
        is_newest=pod["metadata"]["name"] in newest,
        why="" if trouble is None else f"{trouble.reason}: {trouble.words}".rstrip(": "),
    )


def _scaling(cluster: Cluster, server: str) -> list[Scaling]:
    found = []
    for item in get(cluster, "horizontalpodautoscalers"):
        spec, status = item["spec"], item.get("status", {})
        if spec["scaleTargetRef"]["name"] == server:
            conditions = status.get("conditions", [])
            bad = [
                f"{one['reason']}: {one.get('message', '')}" for one in conditions
                if one["type"] in ("AbleToScale", "ScalingActive") and one["status"] != "True"
            ]  # fmt: skip
            found.append(
                Scaling(
                    name=item["metadata"]["name"],
                    min_replicas=spec.get("minReplicas", 1),
                    max_replicas=spec["maxReplicas"],
                    current=status.get("currentReplicas", 0),
                    desired=status.get("desiredReplicas", 0),
                    why="; ".join(bad),
                )
            )
    return found


def _events(cluster: Cluster, run: str) -> list[str]:
    """Return the last warnings about the run's objects.

    The name of another run may begin with this run's.
    """
    own = tuple(f"{run}-{part}" for part in PARTS)
    found = [
        event
        for event in get(cluster, "events")
        if event.get("type") == "Warning"
        and str(event["involvedObject"].get("name", "")).startswith(own)
    ]
    found.sort(key=event_time)
    return [
        f"{event['involvedObject']['kind']}/{event['involvedObject']['name']}: "
        f"{event.get('reason')}: {hide_secrets(str(event.get('message')))}"
        for event in found[-NUM_EVENTS:]
    ]
