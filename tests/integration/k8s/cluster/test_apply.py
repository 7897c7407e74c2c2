"""`tuneline deploy apply` with the real kubectl: rollouts, proofs, and the way back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from k8s.cluster import check, pods
from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import (
    DEPLOY,
    SERVER,
    Released,
    history,
    kinds,
    running,
)
from tests.integration.k8s.cluster.model_server import KEY, ModelServer
from tests.integration.release.line import Answers, write_line

Serve = Callable[..., ModelServer]


def test_an_empty_cluster_gets_a_proven_server(
    cluster: ApiServer, first: Released, serve: Serve
) -> None:
    model = serve(first.digest)
    done = first.deploy("apply", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["context"] == "test"
    assert document["namespace"] == "tuneline"
    assert (document["number"], document["state"]) == (1, "deployed")
    assert document["release"] == first.release
    assert running(cluster) == {
        "release": first.release, "model": first.digest, "image": DEPLOY["image"],
        "replicas": 1, "ready": 1,
    }  # fmt: skip
    # The digest, the names, and both prompts of the reference, by the tunnel.
    assert model.paths == ["/ready", "/v1/models", *["/v1/chat/completions"] * 2]
    assert history(cluster)["current"] == 1
    assert "context test, namespace tuneline" in done.stderr
    assert "2 of 2 answers equal the reference's" in done.stderr
    assert KEY not in done.stdout + done.stderr


def test_a_second_apply_changes_nothing_and_asks_the_server(
    cluster: ApiServer, deployed: Released
) -> None:
    done = deployed.deploy("apply")
    assert done.returncode == 0, done.stderr
    assert "nothing to change: revision 1" in done.stderr
    assert "2 of 2 answers equal" in done.stderr
    assert cluster.store.applied == []


def test_a_new_version_replaces_the_old_one_and_its_surplus_objects(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    assert "HTTPRoute" in kinds(cluster)
    serve(second.digest)
    done = second.deploy("apply", "--yes")
    assert done.returncode == 0, done.stderr
    found = running(cluster)
    assert (found["release"], found["replicas"], found["ready"]) == (second.release, 2, 2)
    assert "HTTPRoute" not in kinds(cluster)
    record = history(cluster)
    states = [(one["number"], one["state"]) for one in record["revisions"]]
    assert (record["current"], states) == (2, [(1, "deployed"), (2, "deployed")])
    assert f"image: {DEPLOY['image']} -> registry.example.com/tuneline-server:2" in done.stderr
    assert "proven: 2 of 2 new pods" in done.stderr


FAULTS = {
    "image-pull": [r"ImagePullBackOff: Back-off pulling image", "tuneline-server:2", "not found"],
    "crash": ["CrashLoopBackOff: exit code 1: the engine did not start", "no kernel image"],
    "unschedulable": ["Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."],
    "mount": ['FailedMount: MountVolume.SetUp failed: secret "x" not found'],
    "quota": ["FailedCreate", "exceeded quota: team, requested: limits.cpu=4, limited: 2"],
    "admission": ["FailedCreate", 'violates PodSecurity "restricted:latest"'],
    "never": ["0 of 2 new pods are ready", "its readiness probe fails", "no kernel image"],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rollout_that_fails_is_rolled_back(
    fault: str, cluster: ApiServer, deployed: Released, second: Released,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pods, "PATIENCE_S", dict.fromkeys(pods.PATIENCE_S, 0.2))
    monkeypatch.setattr("k8s.cluster.rollout.PATIENCE_S", pods.PATIENCE_S)
    before = running(cluster)
    cluster.store.faults["tuneline-server:2"] = fault
    begun_s = time.monotonic()
    options = ("--timeout", "1") if fault == "unschedulable" else ()
    done = second.deploy("apply", "--yes", *options)
    assert time.monotonic() - begun_s < 20
    assert done.returncode == 5
    for words in FAULTS[fault]:
        assert words in done.stderr, done.stderr
    assert "Rolled back to revision 1" in done.stderr
    assert "which is ready again after" in done.stderr
    assert running(cluster) == before
    assert "HTTPRoute" in kinds(cluster)
    record = history(cluster)
    assert (record["current"], record["revisions"][1]["state"]) == (1, "failed")
    assert record["revisions"][1]["why"]


def test_a_first_version_that_fails_is_removed_again(
    cluster: ApiServer, first: Released, serve: Serve
) -> None:
    cluster.store.faults["tuneline-server:1"] = "crash"
    done = first.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "Removed again:" in done.stderr
    assert "there was no earlier version" in done.stderr
    assert kinds(cluster) == {"Secret", "ConfigMap"}
    cluster.store.faults.clear()
    serve(first.digest)
    done = first.deploy("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert history(cluster)["current"] == 2


def test_a_server_of_another_digest_is_rolled_back(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    before = running(cluster)
    serve(deployed.digest)
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert f"the server serves {deployed.digest}; the release is of {second.digest}" in done.stderr
    assert "Rolled back to revision 1" in done.stderr
    assert running(cluster) == before


def test_one_pod_of_another_digest_is_enough_for_a_roll_back(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    before = running(cluster)
    good = serve(second.digest)
    serve(deployed.digest, pods="-1$")
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert good.paths[0] == "/ready"
    assert re.search(rf"pod/{SERVER}-\w+-1: the server serves {deployed.digest}", done.stderr)
    assert "Rolled back to revision 1" in done.stderr
    assert running(cluster) == before


def test_a_proof_asks_a_limited_number_of_pods(
    cluster: ApiServer, second: Released, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "MAX_PODS", 1)
    model = serve(second.digest)
    done = second.deploy("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert "proven: 1 of 2 new pods" in done.stderr
    assert model.paths.count("/ready") == 1


def test_a_proof_that_takes_too_long_is_rolled_back(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(check, "PROOF_S", 1.0)
    model = serve(second.digest)
    is_over = threading.Event()

    def names() -> list[str]:
        is_over.wait(60)
        return []

    model.names = names  # type: ignore[method-assign]
    before = running(cluster)
    begun_s = time.monotonic()
    done = second.deploy("apply", "--yes")
    took_s = time.monotonic() - begun_s
    is_over.set()
    assert took_s < 25
    assert done.returncode == 5
    assert "is not proven within 1 s: " in done.stderr
    assert "Rolled back to revision 1" in done.stderr
    assert running(cluster) == before


def test_a_pod_that_goes_away_is_not_a_failure(
    cluster: ApiServer, second: Released, serve: Serve
) -> None:
    model = serve(second.digest)
    cluster.tunnel_connections[:] = [2]

    def names() -> list[str]:
        for (resource, name), item in cluster.store.objects.items():
            if resource == "pods" and name.endswith("-0"):
                item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        return ModelServer.names(model)

    model.names = names  # type: ignore[method-assign]
    done = second.deploy("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"pod {SERVER}-\w+-0 went away; it is not asked", done.stderr)
    assert "proven: 1 of 2 new pods" in done.stderr


def test_other_answers_than_the_reference_are_rolled_back(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    before = running(cluster)
    serve(second.digest, noise=0.7)
    done = second.deploy("apply", "--yes")
    assert done.returncode == 6
    assert "max_logprob_difference is 0.7 nats" in done.stderr
    assert "Rolled back to revision 1" in done.stderr
    assert running(cluster) == before


def test_a_lost_tunnel_is_opened_again(cluster: ApiServer, first: Released, serve: Serve) -> None:
    serve(first.digest)
    cluster.tunnel_connections[:] = [0, 1]
    done = first.deploy("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert "was lost" in done.stderr
    assert "the server is asked again" in done.stderr


def test_tunnels_that_all_break_are_a_failure(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    serve(second.digest)
    cluster.tunnel_connections[:] = [0, 0, 0]
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "the server was not checked" in done.stderr
    assert "Rolled back to revision 1" in done.stderr


def test_a_version_that_kubectl_applied_can_be_rolled_back_to(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    cluster.store.remove("configmaps", f"{SERVER}-revisions")
    (container,) = cluster.store.find("deployments", SERVER)["spec"]["template"]["spec"][
        "containers"
    ]
    container["args"] = foreign = ["/model", "--api-key", "key-in-a-flag", "--hf-token=flag-token"]
    before = running(cluster)
    cluster.store.faults["tuneline-server:2"] = "crash"
    cluster.store.logs = "args: {'api_key': ['key-in-a-log']}\nHF_TOKEN=log-token is wrong\n"
    shown = second.deploy("diff", "--json").stdout
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "the running version was not applied by tuneline; kept as revision 1" in done.stderr
    assert "Rolled back to revision 1" in done.stderr
    assert running(cluster) == before
    (container,) = cluster.store.find("deployments", SERVER)["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["args"] == foreign
    assert "--api-key *** --hf-token=***" in done.stderr
    assert "args: {'api_key': ***}" in done.stderr
    assert "HF_TOKEN=*** is wrong" in done.stderr
    assert "--api-key" in shown
    secrets = ("key-in-a-flag", "flag-token", "key-in-a-log", "log-token")
    record = json.dumps(history(cluster))
    assert not [one for one in secrets if one in shown + done.stdout + done.stderr + record]


def test_a_paused_deployment_is_left_as_it_is(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    before = running(cluster)
    cluster.store.objects["deployments", SERVER]["spec"]["paused"] = True
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert f"Deployment/{SERVER} is paused, and would start no new pod" in done.stderr
    assert f"kubectl rollout resume -n tuneline deployment {SERVER}" in done.stderr
    assert running(cluster) == before
    assert cluster.store.applied == []


def test_a_field_of_another_manager_is_not_overwritten(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    cluster.store.scale(SERVER, 5)
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert 'conflict with "kubectl"' in done.stderr
    assert ".spec.replicas" in done.stderr
    assert "--force-conflicts" in done.stderr
    assert running(cluster)["replicas"] == 5
    assert cluster.store.applied == []
    serve(second.digest)
    done = second.deploy("apply", "--yes", "--force-conflicts")
    assert done.returncode == 0, done.stderr
    assert running(cluster)["replicas"] == 2


def test_nothing_is_applied_without_a_release_that_passes(
    cluster: ApiServer, tmp_path: Path
) -> None:
    wrong = write_line(tmp_path / "line", Answers(parity_noise=1.0), {"k8s": DEPLOY})
    assert wrong.release().returncode == 6
    run = Released.__new__(Released)
    run.line = wrong
    done = run.deploy("apply", "--yes")
    assert done.returncode == 6
    assert "FAIL" in done.stderr
    assert "Try: tuneline release" in done.stderr
    assert cluster.requests == []


def test_an_apply_asks_before_it_changes_anything(cluster: ApiServer, first: Released) -> None:
    done = first.deploy("apply")
    assert done.returncode == 2
    assert "Apply to context test, namespace tuneline?" in done.stderr
    assert "expected --yes" in done.stderr
    assert cluster.store.applied == []


def test_a_missing_key_is_found_before_the_rollout(cluster: ApiServer, first: Released) -> None:
    cluster.store.remove("secrets", "tuneline-api-key")
    done = first.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "kubectl create secret generic tuneline-api-key" in done.stderr
    assert cluster.store.applied == []


def test_two_applies_do_not_run_at_once(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    stored = cluster.store.objects["configmaps", f"{SERVER}-revisions"]
    record = json.loads(stored["data"]["history.json"])
    other = {
        **record["revisions"][0], "number": 2, "state": "applying", "applied_by": "ana@laptop",
        "until": "2999-01-01T00:00:00+00:00",
    }  # fmt: skip
    record.update(current=2, revisions=[record["revisions"][0], other])
    stored["data"]["history.json"] = json.dumps(record)
    stored["binaryData"]["2.json.gz"] = stored["binaryData"]["1.json.gz"]
    done = second.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "is being applied by ana@laptop" in done.stderr
    assert cluster.store.applied == []


def test_two_first_applies_do_not_run_at_once(cluster: ApiServer, first: Released) -> None:
    original = cluster.store.create

    def create(resource: str, wanted: Any, **options: Any) -> Any:
        original(resource, wanted, **options)  # somebody else was as fast
        return original(resource, wanted, **options)

    cluster.store.create = create  # type: ignore[method-assign]
    done = first.deploy("apply", "--yes")
    assert done.returncode == 5
    assert "somebody else changed the record of this deployment" in done.stderr
    assert kinds(cluster) == {"Secret", "ConfigMap"}


def test_ctrl_c_says_what_it_leaves(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    cluster.store.faults["tuneline-server:2"] = "unschedulable"
    run = second.line.run
    process = subprocess.Popen(
        [
            sys.executable, "-m", "tuneline", "deploy", "apply", str(run.path),
            "--runs-dir", str(run.dir.parent), "--yes",
        ],
        stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "Unschedulable" in line:
                break
        process.send_signal(signal.SIGINT)
        said += process.stderr.readlines()
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
    text = "".join(said)
    assert "interrupted: revision 2" in text
    assert "is applied and not proven" in text
    assert "go back to revision 1" in text
    assert "tuneline deploy roll-back RUN.yaml" in text
    record = history(cluster)
    assert (record["current"], record["revisions"][1]["state"]) == (2, "interrupted")
    done = deployed.deploy("roll-back", "--yes")
    assert done.returncode == 0, done.stderr
    assert running(cluster)["release"] == deployed.release
