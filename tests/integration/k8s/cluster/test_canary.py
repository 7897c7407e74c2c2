"""`deploy canary` with the real kubectl: shares, checks, and the way back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from k8s import open_cluster, require_names
from k8s.cluster import pods
from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import SERVER, Released, running, weights
from tests.integration.k8s.cluster.model_server import ModelServer
from tuneline.core.errors import ConfigError
from tuneline.pipeline.deployment import render_released

Serve = Callable[..., ModelServer]


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


def test_a_canary_behind_a_gateway_that_refuses_its_route_proves_nothing(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A listener lets routes of its own namespace in by default, and a weight changes nothing."""
    monkeypatch.setattr("k8s.cluster.routes.ACCEPT_S", 0.0)
    serve(canary.digest, pods="next-", name="next")
    cluster.store.route_refusal = "NotAllowedByListeners"
    done = canary.deploy("canary", "--weight", "5", "--hold", "0", "--yes")
    assert done.returncode == 5, done.stderr
    assert "gateway public: NotAllowedByListeners" in done.stderr
    assert "(no weight had held)" in done.stderr
    assert "kubernetes.io/metadata.name: tuneline" in done.stderr
    assert weights(cluster) == {SERVER: 100}
    assert "NotAllowedByListeners" in deployed.deploy("status").stdout


def test_the_share_of_a_canary_outlives_an_apply_of_the_stable_run(
    cluster: ApiServer, deployed: Released, with_share: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "PATIENCE_S", dict.fromkeys(pods.PATIENCE_S, 0.2))
    monkeypatch.setattr("k8s.cluster.rollout.PATIENCE_S", pods.PATIENCE_S)
    shares = {SERVER: 99, "next-model-server": 1}
    kept = f"HTTPRoute/{SERVER} keeps the shares that `deploy canary` set: {SERVER} 99"
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
    own = {"backendRefs": [{"name": "next-model-server", "port": 8000, "weight": 7}]}
    spec["rules"] = [rule, docs, header, own]
    done = canary.deploy("canary", "--weight", "5", "--hold", "0", "--yes")
    assert done.returncode == 0, done.stderr
    rules = cluster.store.find("httproutes", SERVER)["spec"]["rules"]
    found = [[one.get("weight") for one in rule["backendRefs"]] for rule in rules]
    assert found == [[95, 5], [None], [95, 5], [7]]
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


def on_first_share(cluster: ApiServer, then: Callable[[], None]) -> None:
    """Do something in the cluster as soon as the canary has a share."""
    original = cluster.store.apply
    done: list[bool] = []

    def apply(resource: str, *args: Any, **options: Any) -> Any:
        item = original(resource, *args, **options)
        if resource == "httproutes" and not options["dry_run"] and not done:
            done.append(True)
            then()
        return item

    cluster.store.apply = apply  # type: ignore[method-assign]


def test_a_weight_that_somebody_else_sets_ends_the_steps(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve
) -> None:
    serve(canary.digest, pods="next-", name="next")

    def take_back() -> None:
        (rule,) = cluster.store.find("httproutes", SERVER)["spec"]["rules"]
        rule["backendRefs"] = [{**rule["backendRefs"][0], "weight": 100}]

    on_first_share(cluster, take_back)
    done = canary.deploy("canary", "--weight", "50", "--hold", "0.1", "--yes")
    assert done.returncode == 5
    assert "somebody else set its weight to 0 while it was 1; it stays 0" in done.stderr
    assert weights(cluster) == {SERVER: 100}


def new_pod(cluster: ApiServer) -> str:
    """Return the name of the canary's second pod."""
    names = [name for kind, name in cluster.store.objects if kind == "pods"]
    (found,) = (name for name in names if name.startswith("next-") and name.endswith("-1"))
    return found


def test_a_canary_keeps_its_share_while_its_autoscaler_adds_a_pod(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve
) -> None:
    serve(canary.digest, pods="next-", name="next")

    def grow() -> None:
        cluster.store.scale("next-model-server", 2)
        cluster.store.made_s[new_pod(cluster)] = time.monotonic() + 1.5  # longer than a step

    on_first_share(cluster, grow)
    done = canary.deploy("canary", "--weight", "5", "--hold", "0.2", "--yes")
    assert done.returncode == 0, done.stderr
    assert weights(cluster) == {SERVER: 95, "next-model-server": 5}


@pytest.mark.parametrize(
    ("fault", "words"),
    [("never", "is not ready any more"), ("image-pull", "not all of its pods can start")],
)
def test_a_canary_whose_pods_fail_loses_its_share(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Serve, fault: str, words: str
) -> None:
    serve(canary.digest, pods="next-", name="next")

    def fail() -> None:
        if fault == "never":
            cluster.store.faults["tuneline-server:3"] = fault
            return
        cluster.store.scale("next-model-server", 2)
        metadata = cluster.store.objects["pods", new_pod(cluster)]["metadata"]
        metadata["labels"] = {**metadata["labels"], "only": "this-pod"}
        cluster.store.faults["this-pod"] = fault

    on_first_share(cluster, fail)
    done = canary.deploy("canary", "--weight", "5", "--hold", "0.2", "--yes")
    assert done.returncode == 5, done.stderr
    assert words in done.stderr
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


def test_a_new_version_of_a_canary_gets_no_request_before_its_proof(
    cluster: ApiServer, with_share: Released
) -> None:
    canary = with_share
    seen: list[dict[str, int]] = []
    original = cluster.store.apply

    def apply(resource: str, *args: Any, **options: Any) -> Any:
        if resource == "deployments" and not options["dry_run"]:
            seen.append(weights(cluster))
        return original(resource, *args, **options)

    cluster.store.apply = apply  # type: ignore[method-assign]
    larger = ("--set", "k8s.resources.memory=13Gi")
    done = canary.deploy("canary", "--weight", "5", "--hold", "0", "--yes", *larger)
    assert done.returncode == 0, done.stderr
    assert seen == [{SERVER: 100}]
    assert "canary next: weight 0 until its new version is proven" in done.stderr
    assert weights(cluster) == {SERVER: 95, "next-model-server": 5}
    cluster.store.faults["14Gi"] = "crash"
    larger = ("--set", "k8s.resources.memory=14Gi")
    done = canary.deploy("canary", "--weight", "5", "--hold", "0", "--yes", *larger)
    assert done.returncode == 5
    assert "Rolled back to revision 2" in done.stderr
    assert seen == [{SERVER: 100}] * 3
    assert weights(cluster) == {SERVER: 100}


def test_a_share_does_not_change_without_a_question(
    cluster: ApiServer, with_share: Released
) -> None:
    before = weights(cluster)
    assert before == {SERVER: 99, "next-model-server": 1}
    canary = with_share
    done = canary.deploy("canary", "--weight", "100", "--hold", "0")
    assert done.returncode == 2
    assert (
        "Give the canary 100 percent (now 1) of the requests of support-tickets, context test, "
        "namespace tuneline? Nobody can answer here; expected --yes"
    ) in done.stderr
    assert weights(cluster) == before
    # The share that it has is checked again without a question.
    done = canary.deploy("canary", "--weight", "1", "--hold", "0")
    assert done.returncode == 0, done.stderr
    assert weights(cluster) == before
