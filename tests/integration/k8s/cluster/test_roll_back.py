"""`deploy roll-back` that fails or is cut off, and is typed again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import SERVER, Released, history, running
from tests.integration.k8s.cluster.model_server import ModelServer
from tests.integration.k8s.cluster.objects import Refused

Serve = Callable[..., ModelServer]


@pytest.fixture
def three(cluster: ApiServer, deployed: Released, second: Released, serve: Serve) -> dict[str, Any]:
    """Revisions 1, 2 and 3, all proven; the state of revision 2."""
    serve(second.digest)
    assert second.deploy("apply", "--yes").returncode == 0
    middle = running(cluster)
    assert second.deploy("apply", "--yes", "--set", "k8s.resources.memory=13Gi").returncode == 0
    assert record(cluster) == (3, 0)
    return middle


def record(cluster: ApiServer) -> tuple[int, int]:
    found = history(cluster)
    return found["current"], found["going_to"]


def memory(cluster: ApiServer) -> str:
    (found,) = [
        item["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        for item in cluster.store.objects.values()
        if item["kind"] == "Deployment"
    ]
    return str(found)


def test_a_roll_back_that_is_refused_goes_to_the_same_revision_again(
    cluster: ApiServer, second: Released, three: dict[str, Any]
) -> None:
    cluster.once = {("patch", "deployments"): [Refused(403, "Forbidden", "deployments forbidden")]}
    done = second.deploy("roll-back", "--yes")
    assert done.returncode == 5
    assert "revision 2" in done.stderr
    assert "may be applied in part" in done.stderr
    assert memory(cluster) == "13Gi"
    assert record(cluster) == (3, 2)
    status = second.deploy("status")
    assert "a roll-back to revision 2 has not ended; to finish it, type:" in status.stdout
    assert second.deploy("roll-back", "--yes").returncode == 0
    assert running(cluster) == three
    assert record(cluster) == (2, 0)


@pytest.mark.parametrize("is_stored", [False, True])
def test_an_interrupted_roll_back_is_finished_by_the_same_command(
    is_stored: bool, cluster: ApiServer, second: Released, three: dict[str, Any]
) -> None:
    original = cluster.store.apply

    def apply(resource: str, name: str, wanted: Any, **options: Any) -> Any:
        if resource == "deployments" and not options["dry_run"]:
            cluster.store.apply = original  # type: ignore[method-assign]
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            if not is_stored:
                raise Refused(500, "InternalError", "the server is going away")
        return original(resource, name, wanted, **options)

    cluster.store.apply = apply  # type: ignore[method-assign]
    done = second.deploy("roll-back", "--yes")
    assert done.returncode == 143
    assert "may be applied in part" in done.stderr
    assert "finish it: tuneline deploy roll-back RUN.yaml" in done.stderr
    assert record(cluster) == (3, 2)
    done = second.deploy("roll-back", "--yes")
    assert done.returncode == 0, done.stderr
    assert running(cluster) == three
    assert record(cluster) == (2, 0)


def test_a_roll_back_whose_pods_are_not_ready_goes_to_the_same_revision_again(
    cluster: ApiServer, second: Released, three: dict[str, Any]
) -> None:
    cluster.store.faults["12Gi"] = "crash"
    done = second.deploy("roll-back", "--yes")
    assert done.returncode == 5
    assert "is applied and not ready" in done.stderr
    assert record(cluster) == (3, 2)
    cluster.store.faults.clear()
    assert second.deploy("roll-back", "--yes").returncode == 0
    assert running(cluster) == three


def test_an_apply_after_an_unfinished_roll_back_fails_back_to_its_revision(
    cluster: ApiServer, second: Released, three: dict[str, Any]
) -> None:
    cluster.once = {("patch", "deployments"): [Refused(403, "Forbidden", "deployments forbidden")]}
    assert second.deploy("roll-back", "--yes").returncode == 5
    # Revision 3 still runs. It is not `nothing to change`: somebody meant to leave it.
    same = ("--set", "k8s.resources.memory=13Gi")
    done = second.deploy("apply", *same)
    assert (done.returncode, "expected --yes" in done.stderr) == (2, True)
    cluster.store.faults["14Gi"] = "crash"
    done = second.deploy("apply", "--yes", "--set", "k8s.resources.memory=14Gi")
    assert done.returncode == 5
    assert "Rolled back to revision 2" in done.stderr
    assert running(cluster) == three
    assert record(cluster) == (2, 0)


def test_a_way_back_is_not_judged_by_the_version_that_is_left(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    before = running(cluster)
    cluster.store.num_stale = 2  # the controller sees each change two looks late
    cluster.store.faults["tuneline-server:2"] = "crash"
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "CrashLoopBackOff: exit code 1" in done.stderr
    assert "Rolled back to revision 1" in done.stderr, done.stderr
    assert running(cluster) == before


def test_an_apply_that_somebody_rolls_back_removes_nothing(
    cluster: ApiServer, deployed: Released, second: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier version answers the check of the new one; both may serve one model."""
    done = []

    def check_server(*_: Any) -> None:
        monkeypatch.setattr("k8s.cluster.apply.check_server", lambda *_: None)
        done.append(deployed.deploy("roll-back", "--yes"))

    monkeypatch.setattr("k8s.cluster.apply.check_server", check_server)
    applied = second.deploy("apply", "--yes")
    assert [one.returncode for one in done] == [0], done
    assert applied.returncode == 5
    assert "somebody else changed the record of this deployment" in applied.stderr
    assert "was proven, and may be replaced by now; nothing was removed" in applied.stderr
    assert running(cluster)["release"] == deployed.release
    # The second version has no route.
    assert ("httproutes", SERVER) in cluster.store.objects
    assert record(cluster) == (1, 0)
