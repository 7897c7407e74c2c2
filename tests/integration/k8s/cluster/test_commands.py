"""`deploy diff`, `status`, `canary` and `roll-back` with the real kubectl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from k8s import open_cluster, require_names
from k8s.cluster import pods
from tests.commands import tuneline_here
from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import (
    DEPLOY,
    GATEWAY,
    SERVER,
    Released,
    history,
    running,
)
from tests.integration.k8s.cluster.model_server import ModelServer
from tuneline.core.errors import ConfigError
from tuneline.pipeline.deployment import render_released

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
    for kind, name, reason in [("Pod", f"{SERVER}-x", "BackOff"), ("Pod", "other-x", "Other")]:
        cluster.store.objects["events", name] = {
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": "tuneline"},
            "type": "Warning", "reason": reason, "message": "it fails",
            "involvedObject": {"kind": kind, "name": name}, "lastTimestamp": "2026-01-01T00:00:00Z",
        }  # fmt: skip
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


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A second run with a model of its own, which names the gateway of the first."""
    folder = tmp_path_factory.mktemp("canary")
    image = "registry.example.com/tuneline-server:3"
    serving = {"aliases": ["support-tickets"]}
    own = {"gateway": GATEWAY, "image": image}
    return Released(folder, 3.0, own, name="next", serving=serving)


def weights(cluster: ApiServer) -> dict[str, int]:
    (rule,) = cluster.store.find("httproutes", SERVER)["spec"]["rules"]
    return {one["name"]: one["weight"] for one in rule["backendRefs"]}


def test_a_canary_gets_its_share_step_by_step(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve
) -> None:
    serve(canary.digest, pods="next-", name="next")
    before = running(cluster)
    done = canary.deploy("canary", "--weight", "5", "--hold", "0.1", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["held"] == [1, 5]
    assert json.loads(done.stdout)["stable"] == "support-tickets"
    assert weights(cluster) == {SERVER: 95, "next-model-server": 5}
    assert ("httproutes", "next-model-server") not in cluster.store.objects
    assert running(cluster) == before
    document = json.loads(deployed.deploy("status", "--json").stdout)
    assert document["weights"] == {SERVER: 95, "next-model-server": 5}
    done = canary.deploy("canary", "--weight", "0", "--yes")
    assert done.returncode == 0, done.stderr
    assert weights(cluster) == {SERVER: 100}


def test_the_share_of_a_canary_outlives_an_apply_of_the_stable_run(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pods, "PATIENCE_S", dict.fromkeys(pods.PATIENCE_S, 0.2))
    monkeypatch.setattr("k8s.cluster.rollout.PATIENCE_S", pods.PATIENCE_S)
    serve(canary.digest, pods="next-", name="next")
    done = canary.deploy("canary", "--weight", "5", "--hold", "0", "--yes")
    assert done.returncode == 0, done.stderr
    shares = {SERVER: 95, "next-model-server": 5}
    kept = f"HTTPRoute/{SERVER} keeps the shares that `deploy canary` set: {SERVER} 95"
    done = deployed.deploy("diff")
    assert (done.returncode, weights(cluster)) == (0, shares)
    assert kept in done.stderr
    larger = ("--yes", "--set", "k8s.resources.memory=16Gi")
    done = deployed.deploy("apply", *larger)
    assert (done.returncode, weights(cluster)) == (0, shares), done.stderr
    cluster.store.faults["13Gi"] = "crash"
    done = deployed.deploy("apply", "--yes", "--set", "k8s.resources.memory=13Gi")
    assert "Rolled back to revision 2" in done.stderr
    assert weights(cluster) == shares
    # A share of one's own in run.yaml is a change that wins.
    own = ("--set", "k8s.gateway.canary.run=next", "--set", "k8s.gateway.canary.weight=20")
    done = deployed.deploy("apply", *larger, *own)
    assert done.returncode == 0, done.stderr
    assert weights(cluster) == {SERVER: 80, "next-model-server": 20}


def test_the_share_of_a_server_that_is_gone_is_not_kept(
    cluster: ApiServer, deployed: Released
) -> None:
    (rule,) = cluster.store.find("httproutes", SERVER)["spec"]["rules"]
    (first,) = rule["backendRefs"]
    rule["backendRefs"] = [{**first, "weight": 90}, {**first, "name": "gone", "weight": 10}]
    done = deployed.deploy("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"HTTPRoute/{SERVER}: gone has a share and is not there" in done.stderr
    assert weights(cluster) == {SERVER: 100}


def test_a_canary_that_clients_would_not_find_gets_no_share(
    cluster: ApiServer, deployed: Released, canary: Released
) -> None:
    manifests = render_released(canary.line.run)
    require_names(open_cluster("tuneline"), "support-tickets", manifests)
    (container,) = manifests.deployment["spec"]["template"]["spec"]["containers"]
    container["args"].remove("support-tickets")
    with pytest.raises(ConfigError, match="next: does not serve support-tickets, the name") as e:
        require_names(open_cluster("tuneline"), "support-tickets", manifests)
    assert e.value.hint == (
        "Set serving.aliases: [support-tickets] in the run.yaml of next, and run tuneline release "
        "again."
    )


def test_a_canary_gets_its_share_in_every_rule_of_the_stable_run(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve
) -> None:
    serve(canary.digest, pods="next-", name="next")
    spec = cluster.store.find("httproutes", SERVER)["spec"]
    (rule,) = spec["rules"]
    docs = {"backendRefs": [{"name": "docs", "port": 80}]}
    header = {**rule, "matches": [{"headers": [{"name": "team", "value": "a"}]}]}
    spec["rules"] = [rule, docs, header]
    done = canary.deploy("canary", "--weight", "5", "--hold", "0", "--yes")
    assert done.returncode == 0, done.stderr
    rules = cluster.store.find("httproutes", SERVER)["spec"]["rules"]
    found = [[one.get("weight") for one in rule["backendRefs"]] for rule in rules]
    assert found == [[95, 5], [None], [95, 5]]
    assert rules[2]["matches"] == header["matches"]
    cluster.store.find("httproutes", SERVER)["spec"]["rules"] = [docs]
    done = canary.deploy("canary", "--weight", "0", "--yes")
    assert done.returncode == 2
    assert f"HTTPRoute/{SERVER}: its rules send to docs; expected a rule" in done.stderr


def test_a_canary_that_answers_otherwise_loses_its_share(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve
) -> None:
    model = serve(canary.digest, pods="next-", name="next")
    seen: list[dict[str, int]] = []

    def found(messages: Any) -> Any:
        if ("httproutes", SERVER) in cluster.store.objects:
            seen.append(weights(cluster))
        model.noise = 0.7 if weights(cluster).get("next-model-server") == 5 else 0.0
        return ModelServer.find(model, messages)

    model.find = found  # type: ignore[method-assign]
    done = canary.deploy("canary", "--weight", "50", "--hold", "0.1", "--yes")
    assert done.returncode == 6
    assert "max_logprob_difference is 0.7 nats" in done.stderr
    assert "The canary's weight is 0 again (weight 1 had held)" in done.stderr
    assert {SERVER: 95, "next-model-server": 5} in seen
    assert weights(cluster) == {SERVER: 100}


def test_a_canary_whose_speed_is_not_measured_loses_its_share(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve, tmp_path: Path
) -> None:
    serve(canary.digest, pods="next-", name="next")
    stable = serve(deployed.digest, key="another-key")
    options = ("--weight", "5", "--hold", "0", "--yes", "--compare", str(tmp_path / "speeds"))
    done = canary.deploy("canary", *options)
    assert done.returncode == 5, done.stderr
    assert "The canary's weight is 0 again (no weight had held)" in done.stderr
    assert weights(cluster) == {SERVER: 100}
    assert "/v1/models" in stable.paths


def test_earlier_reports_of_a_canary_are_not_overwritten(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve, tmp_path: Path
) -> None:
    serve(canary.digest, pods="next-", name="next")
    (tmp_path / "weight-1").mkdir()
    done = canary.deploy("canary", "--weight", "5", "--yes", "--compare", str(tmp_path))
    assert done.returncode == 3
    assert f"{tmp_path}: has reports of an earlier canary" in done.stderr
    assert cluster.store.applied == []


def test_a_canary_whose_container_restarts_loses_its_share(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve
) -> None:
    serve(canary.digest, pods="next-", name="next")
    assert canary.deploy("apply", "--yes", "--set", "k8s.gateway.route=false").returncode == 0
    model = cluster.backends["next-"]
    assert model

    original = cluster.store.apply

    def apply(resource: str, *args: Any, **options: Any) -> Any:
        if resource == "httproutes" and not options["dry_run"]:
            cluster.store.faults["tuneline-server:3"] = "restarts"
        return original(resource, *args, **options)

    cluster.store.apply = apply  # type: ignore[method-assign]
    done = canary.deploy("canary", "--weight", "5", "--hold", "0.2", "--yes")
    assert done.returncode == 5
    assert "a container started again" in done.stderr
    assert weights(cluster) == {SERVER: 100}


def test_a_canary_needs_a_stable_run_with_a_route(
    cluster: ApiServer, canary: Released, second: Released
) -> None:
    done = second.deploy("canary", "--weight", "5", "--yes")
    assert done.returncode == 2
    assert "k8s.gateway: missing" in done.stderr
    done = canary.deploy("canary", "--weight", "5", "--yes")
    assert done.returncode == 2
    assert "no other run has a route" in done.stderr
    assert cluster.store.applied == []
