"""The number of pods while a server changes from fixed replicas to an autoscaler, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from k8s import apply_manifests, find_earlier, open_cluster, plan_apply, roll_back_server
from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import SERVER, Released, history, kinds, running
from tests.integration.k8s.cluster.model_server import ModelServer
from tuneline.core.errors import ServerError
from tuneline.pipeline.deployment import render_released

Serve = Callable[..., ModelServer]
RUN = "support-tickets"


def manifests(of: Released, *, memory: str = "12Gi", is_scaled: bool = True) -> list[Any]:
    """Return the objects of a released run, which an autoscaler scales or not."""
    found = copy.deepcopy(render_released(of.line.run).objects)
    (deployment,) = (item for item in found if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["resources"]["limits"]["memory"] = memory
    if is_scaled:
        del deployment["spec"]["replicas"]
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": SERVER}
        found.append({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": SERVER, "namespace": "tuneline"},
            "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4},
        })  # fmt: skip
    return found


def roll_out(objects: list[Any], *, force_conflicts: bool = False) -> None:
    cluster = open_cluster("tuneline")
    plan = plan_apply(cluster, RUN, objects, force_conflicts=force_conflicts)
    apply_manifests(cluster, plan, check=lambda _: None, force_conflicts=force_conflicts)


@pytest.fixture
def sizes(cluster: ApiServer) -> list[int]:
    """The replicas after each apply of a Deployment that is not a dry run."""
    found: list[int] = []
    original = cluster.store.apply

    def apply(resource: str, name: str, wanted: Any, **options: Any) -> Any:
        item = original(resource, name, wanted, **options)
        if resource == "deployments" and not options["dry_run"]:
            found.append(item["spec"]["replicas"])
        return item

    cluster.store.apply = apply  # type: ignore[method-assign]
    return found


def test_a_server_that_gets_an_autoscaler_keeps_its_pods(
    cluster: ApiServer, second: Released, serve: Serve, sizes: list[int]
) -> None:
    serve(second.digest)
    roll_out(manifests(second, is_scaled=False))
    assert running(cluster)["replicas"] == 2
    plan = plan_apply(open_cluster("tuneline"), RUN, manifests(second))
    assert [change.object for change in plan.changes] == [f"HorizontalPodAutoscaler/{SERVER}"]
    roll_out(manifests(second))
    assert "HorizontalPodAutoscaler" in kinds(cluster)
    assert set(sizes) == {2}
    # A number that the autoscaler chose stays in the next version and after a roll-back.
    cluster.store.scale(SERVER, 4)
    roll_out(manifests(second, memory="13Gi"))
    assert (running(cluster)["replicas"], running(cluster)["ready"]) == (4, 4)
    back = open_cluster("tuneline")
    assert roll_back_server(back, RUN, find_earlier(back, RUN)).number == 2
    assert running(cluster)["replicas"] == 4


def test_a_way_back_to_an_autoscaler_keeps_the_pods(
    cluster: ApiServer, second: Released, serve: Serve, sizes: list[int]
) -> None:
    serve(second.digest)
    roll_out(manifests(second))
    cluster.store.scale(SERVER, 3)
    with pytest.raises(ServerError, match=r"\.spec\.replicas"):
        roll_out(manifests(second, is_scaled=False))
    cluster.store.faults["13Gi"] = "crash"
    sizes.clear()
    fixed = manifests(second, memory="13Gi", is_scaled=False)
    with pytest.raises(ServerError, match="Rolled back to revision 1"):
        roll_out(fixed, force_conflicts=True)
    assert len(sizes) == 3  # the apply, the hold, and the way back
    assert set(sizes) == {2}
    assert history(cluster)["current"] == 1


def test_an_autoscaler_of_keda_is_not_taken_over(
    cluster: ApiServer, second: Released, serve: Serve
) -> None:
    """KEDA makes an autoscaler of the same name, which goes when its ScaledObject goes."""
    serve(second.digest)
    roll_out(manifests(second))
    owner = {"kind": "ScaledObject", "name": SERVER, "apiVersion": "keda.sh/v1alpha1", "uid": "1"}
    live = cluster.store.find("horizontalpodautoscalers", SERVER)
    live["metadata"]["ownerReferences"] = [owner]
    cluster.store.applied.clear()
    with pytest.raises(ServerError, match="belongs to ScaledObject") as caught:
        roll_out(manifests(second, memory="13Gi"))
    assert f"kubectl delete -n tuneline scaledobject {SERVER}" in (caught.value.hint or "")
    assert cluster.store.applied == []
