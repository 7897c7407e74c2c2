"""Keep the number of pods when manifests leave `replicas` to an autoscaler.

Server-side apply removes a field that only its own manager has set. `replicas` then takes its
default, so a server of many pods would have one at once, until the autoscaler acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from k8s.cluster.changes import identity
from k8s.cluster.kubectl import Cluster, Object, apply, get_live
from k8s.cluster.refusals import OTHER_AUTOSCALER
from k8s.rules.objects import ref
from tuneline.core.errors import ServerError
from tuneline.core.progress import logger

HOLDER = "tuneline-replicas"
"""The field manager that holds the number until the autoscaler changes it."""


def show_replicas(
    wanted: Sequence[Mapping[str, Any]], live: Sequence[Object], merged: Sequence[Object]
) -> list[Object]:
    """Return merged objects with the number of pods that `hold_replicas` keeps."""
    open_ones = {identity(item) for item in _without_replicas(wanted)}
    sizes = {identity(item): item["spec"]["replicas"] for item in live if _has_replicas(item)}
    return [
        {**item, "spec": {**item["spec"], "replicas": sizes[key]}}
        if (key := identity(item)) in open_ones and key in sizes
        else item
        for item in merged
    ]


def hold_replicas(cluster: Cluster, wanted: Sequence[Mapping[str, Any]]) -> None:
    """Give the live number of pods to another field manager if an apply would reset it.

    Raises:
        ServerError: The cluster does not answer, or refuses.
    """
    objects = _without_replicas(wanted)
    live = {identity(item): item for item in get_live(cluster, objects)}
    there = [item for item in objects if identity(item) in live]
    if not there:
        return
    for item in apply(cluster, there, dry_run=True, force_conflicts=True):
        size = live[identity(item)]["spec"].get("replicas", 1)
        if item["spec"].get("replicas", 1) != size:
            name = item["metadata"]["name"]
            part = {
                "apiVersion": item["apiVersion"], "kind": item["kind"],
                "metadata": {"name": name}, "spec": {"replicas": size},
            }  # fmt: skip
            logger.info("deployment %s keeps its %d pods until the autoscaler acts", name, size)
            apply(cluster, [part], manager=HOLDER, force_conflicts=True)


def _without_replicas(objects: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [item for item in objects if item["kind"] == "Deployment" and not _has_replicas(item)]


def _has_replicas(item: Mapping[str, Any]) -> bool:
    return item["kind"] == "Deployment" and "replicas" in item["spec"]


def refuse_owned(cluster: Cluster, live: Sequence[Object]) -> None:
    """Raise ServerError if an autoscaler of the manifests is KEDA's own by now.

    It would go with the ScaledObject, which the manifests no longer have.
    """
    for item in live:
        if item["kind"] != "HorizontalPodAutoscaler":
            continue
        for owner in item["metadata"].get("ownerReferences", []):
            raise ServerError(
                f"{cluster.where}: {ref(item)} belongs to {owner['kind']}/{owner['name']}, and "
                "would go with it",
                hint=f"{OTHER_AUTOSCALER}: kubectl delete -n {cluster.namespace} "
                f"{owner['kind'].lower()} {owner['name']}",
            )
