"""The number of pods while a server changes from fixed replicas to an autoscaler, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import SERVER, Released, history, kinds, running
from tests.integration.k8s.cluster.model_server import ModelServer

Serve = Callable[..., ModelServer]
SCALED = (
    "--set", "k8s.replicas=1",
    "--set", 'k8s.autoscaling={"by": "hpa", "min_replicas": 2, "max_replicas": 4}',
)  # fmt: skip
LARGER = ("--set", "k8s.resources.memory=13Gi")


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
    assert second.deploy("apply", "--yes").returncode == 0
    assert running(cluster)["replicas"] == 2
    shown = second.deploy("diff", *SCALED)
    assert shown.returncode == 6, shown.stderr
    assert "created: HorizontalPodAutoscaler" in shown.stdout
    assert "replicas: 2 -> 1" not in shown.stdout
    done = second.deploy("apply", "--yes", *SCALED)
    assert done.returncode == 0, done.stderr
    assert f"deployment {SERVER} keeps its 2 pods until the autoscaler acts" in done.stderr
    assert "HorizontalPodAutoscaler" in kinds(cluster)
    assert set(sizes) == {2}
    # A number that the autoscaler chose stays in the next version and after a roll-back.
    cluster.store.scale(SERVER, 4)
    done = second.deploy("apply", "--yes", *SCALED, *LARGER)
    assert done.returncode == 0, done.stderr
    assert "proven: 4 of 4 new pods" in done.stderr
    done = second.deploy("roll-back", "--yes")
    assert done.returncode == 0, done.stderr
    assert running(cluster)["replicas"] == 4


def test_a_way_back_to_an_autoscaler_keeps_the_pods(
    cluster: ApiServer, second: Released, serve: Serve, sizes: list[int]
) -> None:
    serve(second.digest)
    assert second.deploy("apply", "--yes", *SCALED).returncode == 0
    cluster.store.scale(SERVER, 3)
    conflict = second.deploy("apply", "--yes")
    assert conflict.returncode == 5
    assert ".spec.replicas" in conflict.stderr
    cluster.store.faults["13Gi"] = "crash"
    sizes.clear()
    done = second.deploy("apply", "--yes", "--force-conflicts", *LARGER)
    assert done.returncode == 5
    assert "Rolled back to revision 1" in done.stderr
    assert set(sizes) == {2}
    assert history(cluster)["current"] == 1
