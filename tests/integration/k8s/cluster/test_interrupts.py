"""An apply that ends in the middle: by a signal at any moment, or by an error of our own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import SERVER, Released, history, kinds, running
from tests.integration.k8s.cluster.model_server import ModelServer

Serve = Callable[..., ModelServer]
SLOW_S = 0.3
"""The cluster takes so long for the request in which the signal comes."""


def interrupt_in_apply(
    cluster: ApiServer, number: int, is_due: Callable[[str, dict[str, Any]], bool]
) -> None:
    """Send this process a signal while the cluster works on a request, which it then stores."""
    original = cluster.store.apply

    def apply(resource: str, name: str, wanted: dict[str, Any], **options: Any) -> Any:
        if not options["dry_run"] and is_due(resource, wanted):
            cluster.store.apply = original  # type: ignore[method-assign]
            os.kill(os.getpid(), number)
            time.sleep(SLOW_S)
        return original(resource, name, wanted, **options)

    cluster.store.apply = apply  # type: ignore[method-assign]


def states(cluster: ApiServer) -> tuple[int, list[str]]:
    record = history(cluster)
    return record["current"], [one["state"] for one in record["revisions"]]


def test_a_signal_before_anything_is_applied_leaves_the_running_version(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    before = running(cluster)
    interrupt_in_apply(cluster, signal.SIGTERM, lambda resource, _: resource == "configmaps")
    done = second.deploy("apply", "--yes")
    assert done.returncode == 143
    assert "interrupted: only the record of revision 2" in done.stderr
    assert running(cluster) == before
    assert states(cluster) == (1, ["deployed", "interrupted"])
    serve(second.digest)
    assert second.deploy("apply", "--yes").returncode == 0
    assert states(cluster) == (3, ["deployed", "interrupted", "deployed"])


def test_a_signal_while_the_first_record_is_created_leaves_an_empty_cluster(
    cluster: ApiServer, first: Released
) -> None:
    original = cluster.store.create

    def create(*args: Any, **options: Any) -> Any:
        cluster.store.create = original  # type: ignore[method-assign]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SLOW_S)
        return original(*args, **options)

    cluster.store.create = create  # type: ignore[method-assign]
    done = first.deploy("apply", "--yes")
    assert done.returncode == 143
    assert "the record does not say so" not in done.stderr
    assert kinds(cluster) == {"Secret", "ConfigMap"}
    assert states(cluster) == (0, ["interrupted"])


def test_a_signal_while_old_objects_are_removed_leaves_a_proven_server(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    serve(second.digest)
    original = cluster.store.remove

    def remove(resource: str, name: str) -> Any:
        cluster.store.remove = original  # type: ignore[method-assign]
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(SLOW_S)
        return cluster.store.find(resource, name)

    cluster.store.remove = remove  # type: ignore[method-assign]
    done = second.deploy("apply", "--yes")
    assert done.returncode == 130
    assert "interrupted: revision 2" in done.stderr
    assert "is deployed and proven" in done.stderr
    assert f"the next apply removes what is left of: HTTPRoute/{SERVER}" in done.stderr
    assert states(cluster) == (2, ["deployed", "deployed"])
    assert "HTTPRoute" in kinds(cluster)
    done = second.deploy("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"removed: HTTPRoute/{SERVER}" in done.stderr
    assert "HTTPRoute" not in kinds(cluster)


def test_a_signal_in_the_last_write_leaves_the_record_of_a_proven_server(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    serve(second.digest)

    def is_due(resource: str, wanted: dict[str, Any]) -> bool:
        # The first write says `applying`, the last one does not.
        return resource == "configmaps" and "applying" not in str(wanted.get("data"))

    interrupt_in_apply(cluster, signal.SIGINT, is_due)
    done = second.deploy("apply", "--yes")
    assert done.returncode == 130
    assert "is deployed and proven" in done.stderr
    assert "the record does not say so" not in done.stderr
    assert states(cluster) == (2, ["deployed", "deployed"])
    status = second.deploy("status")
    assert "applying" not in status.stdout


def test_a_signal_on_the_way_back_is_finished_by_a_roll_back(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    before = running(cluster)
    cluster.store.faults["tuneline-server:2"] = "crash"
    interrupt_in_apply(
        cluster, signal.SIGTERM, lambda _, wanted: "tuneline-server:1" in str(wanted.get("spec"))
    )
    done = second.deploy("apply", "--yes")
    assert done.returncode == 143
    assert "interrupted on the way back to revision 1" in done.stderr
    assert states(cluster) == (2, ["deployed", "interrupted"])
    why = history(cluster)["revisions"][1]["why"]
    assert why.startswith("interrupted on the way back after: deployment")
    done = second.deploy("roll-back", "--yes")
    assert done.returncode == 0, done.stderr
    assert running(cluster) == before


def test_an_apply_whose_process_was_killed_is_not_in_the_way(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    """The state that SIGKILL leaves: the record of a process that is no more."""
    stored = cluster.store.objects["configmaps", f"{SERVER}-revisions"]
    text = stored["data"]["history.json"]
    stored["data"]["history.json"] = text.replace('"deployed"', '"applying"')
    status = deployed.deploy("status")
    assert "applying (its process has ended)" in status.stdout
    serve(second.digest)
    assert second.deploy("apply", "--yes").returncode == 0
    assert states(cluster) == (2, ["interrupted", "deployed"])
    assert history(cluster)["revisions"][0]["why"] == "its process ended without a word"


def test_an_error_of_our_own_is_rolled_back_and_ends_as_itself(
    cluster: ApiServer, deployed: Released, second: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "k8s.cluster.apply.logger.warning", lambda text, *args: said.append(text % args)
    )
    before = running(cluster)
    cluster.store.faults["tuneline-server:2"] = "odd"  # a condition of a pod has no status
    with pytest.raises(KeyError, match="status"):
        second.deploy("apply", "--yes")
    (words,) = said
    assert words.startswith("an unexpected error ended the apply: KeyError('status')")
    assert "Rolled back to revision 1" in words
    assert running(cluster) == before
    assert states(cluster) == (1, ["deployed", "failed"])
    assert history(cluster)["revisions"][1]["why"] == "KeyError('status')"
