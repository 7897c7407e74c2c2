"""`deploy diff`, `status`, `canary` and `roll-back` with the real kubectl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.commands import tuneline_here
from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import (
    DEPLOY,
    SERVER,
    Released,
    history,
    running,
)
from tests.integration.k8s.cluster.model_server import ModelServer
from tests.integration.k8s.cluster.objects import event

Serve = Callable[..., ModelServer]


def test_a_diff_of_an_empty_cluster_lists_what_is_created(
    cluster: ApiServer, first: Released
) -> None:
    done = first.deploy("diff")
    assert done.returncode == 6, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("created:"))
    assert f"Deployment/{SERVER}" in line
    assert f"HTTPRoute/{SERVER}" in line
    assert cluster.store.applied == []


def test_a_diff_is_empty_after_the_apply(cluster: ApiServer, deployed: Released) -> None:
    done = deployed.deploy("diff")
    assert done.returncode == 0, done.stdout
    assert "nothing would change" in done.stdout


def test_a_diff_says_in_words_what_a_new_version_changes(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    done = second.deploy("diff", "--set", "k8s.resources.memory=16Gi")
    assert done.returncode == 6
    lines = done.stdout.splitlines()
    assert lines[0] == "context test, namespace tuneline"
    assert lines[1] == f"release: {deployed.release} -> {second.release}"
    assert lines[2] == f"model: {deployed.digest} -> {second.digest}"
    assert lines[3] == f"image: {DEPLOY['image']} -> registry.example.com/tuneline-server:2"
    assert lines[4] == "replicas: 1 -> 2"
    assert any(line.startswith("flags, added: ") for line in lines)
    assert f"removed: HTTPRoute/{SERVER}, NetworkPolicy/{SERVER}-gateway" in lines
    path = "spec.template.spec.containers[vllm].resources.limits.memory"
    assert f"  {path}: 12Gi -> 16Gi" in lines


def test_a_diff_of_a_rendered_directory_is_that_of_its_run(
    cluster: ApiServer, deployed: Released, second: Released, tmp_path: Path
) -> None:
    out = tmp_path / "tree"
    assert second.deploy("render", "--out", str(out)).returncode == 0
    by_run = second.deploy("diff", "--json")
    by_tree = tuneline_here("deploy", "diff", str(out), "--json")
    assert by_tree.returncode == by_run.returncode == 6
    document = json.loads(by_tree.stdout)
    assert document == json.loads(by_run.stdout)
    assert document["has_changes"]
    done = tuneline_here("deploy", "diff", str(out), "--namespace", "other")
    assert done.returncode == 2
    assert "is rendered for namespace tuneline" in done.stderr


def test_status_says_what_runs(cluster: ApiServer, deployed: Released) -> None:
    document = json.loads(deployed.deploy("status", "--json").stdout)
    assert document["is_current"]
    assert document["is_ready"]
    assert document["release"] == document["local_release"] == deployed.release
    assert [pod["is_ready"] for pod in document["pods"]] == [True]
    assert document["weights"] == {SERVER: 100}
    assert document["history"]["current"] == 1
    text = deployed.deploy("status").stdout
    assert "(the local release)" in text
    assert "rollout: complete, 1 of 1 pods available" in text


def test_status_says_why_pods_are_not_ready(
    cluster: ApiServer, deployed: Released, second: Released
) -> None:
    cluster.store.faults["tuneline-server:1"] = "crash"
    for kind, name, reason in [
        ("Pod", f"{SERVER}-x", "BackOff"), ("Pod", "other-x", "Other"),
        ("Pod", "support-tickets-2-model-server-x", "Other"),
    ]:  # fmt: skip
        cluster.store.objects["events", name] = event(kind, name, reason, "it fails")
    cluster.store.objects["horizontalpodautoscalers", "h"] = {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h", "namespace": "tuneline"},
        "spec": {"scaleTargetRef": {"name": SERVER}, "minReplicas": 1, "maxReplicas": 4},
        "status": {
            "currentReplicas": 1, "desiredReplicas": 2,
            "conditions": [
                {"type": "ScalingActive", "status": "False", "reason": "FailedGetPodsMetric",
                 "message": "no metrics"},
            ],
        },
    }  # fmt: skip
    done = second.deploy("status")
    assert done.returncode == 0, done.stderr
    assert f"(local: {second.release})" in done.stdout
    assert "not ready: CrashLoopBackOff: exit code 1: the engine did not start" in done.stdout
    assert "rollout: under way; 1 of 1 pods are new, 0 available" in done.stdout
    assert "autoscaler h: 1 pods, wants 2 of 1 to 4 FailedGetPodsMetric: no metrics" in done.stdout
    assert f"event: Pod/{SERVER}-x: BackOff: it fails" in done.stdout
    assert "Other" not in done.stdout


def test_status_names_the_rights_that_are_missing_and_shows_the_rest(
    cluster: ApiServer, deployed: Released
) -> None:
    cluster.forbidden |= {
        ("list", "events"), ("list", "horizontalpodautoscalers"), ("get", "httproutes"),
        ("get", "configmaps"),
    }  # fmt: skip
    done = deployed.deploy("status")
    assert done.returncode == 0, done.stderr
    assert "rollout: complete, 1 of 1 pods available" in done.stdout
    assert "(the local release)" in done.stdout
    rights = "get configmaps, list horizontalpodautoscalers, get httproutes, list events"
    assert f"not shown: you have no right to {rights} (docs/deploy.md" in done.stdout
    document = json.loads(deployed.deploy("status", "--json").stdout)
    assert document["missing_rights"] == rights.split(", ")
    assert document["history"] is None


def test_status_of_a_run_that_is_not_deployed(cluster: ApiServer, first: Released) -> None:
    done = first.deploy("status")
    assert done.returncode == 0
    assert "not deployed; to deploy it, type: tuneline deploy apply RUN.yaml" in done.stdout


def test_a_roll_back_brings_all_objects_back(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    before = running(cluster)
    serve(second.digest)
    assert second.deploy("apply", "--yes").returncode == 0
    assert ("httproutes", SERVER) not in cluster.store.objects
    serve(deployed.digest)
    done = second.deploy("roll-back", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["number"] == 1
    assert running(cluster) == before
    assert ("httproutes", SERVER) in cluster.store.objects
    assert history(cluster)["current"] == 1
    done = second.deploy("roll-back", "--yes")
    assert done.returncode == 3
    assert "has no proven record of an earlier revision" in done.stderr
    serve(second.digest)
    assert second.deploy("roll-back", "--to", "2", "--yes").returncode == 0
    assert running(cluster)["release"] == second.release
    assert ("httproutes", SERVER) not in cluster.store.objects


def test_a_roll_back_to_a_version_that_is_not_ready_says_so(
    cluster: ApiServer, deployed: Released, second: Released, serve: Serve
) -> None:
    serve(second.digest)
    assert second.deploy("apply", "--yes").returncode == 0
    cluster.store.faults["tuneline-server:1"] = "crash"
    done = second.deploy("roll-back", "--yes")
    assert done.returncode == 5
    assert "CrashLoopBackOff" in done.stderr
    assert "revision 1" in done.stderr
    assert "is applied and not ready" in done.stderr
