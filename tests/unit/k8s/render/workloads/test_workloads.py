"""A rendered server as a LeaderWorkerSet and as KServe's LLMInferenceService."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from k8s.config import DeployConfig
from k8s.render.workloads.table import WORKLOADS
from tests.unit.k8s.only import only
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError, MissingError

Objects: TypeAlias = list[dict[str, Any]]
Tree: TypeAlias = Callable[[str], Objects]


def test_each_workload_is_a_row() -> None:
    named = DeployConfig.model_fields["workload"].annotation.__args__  # type: ignore[union-attr]
    assert set(named) == {"deployment", *WORKLOADS}


def test_the_hosts_of_a_model_are_one_vllm(tree: Tree) -> None:
    objects = tree("several hosts")
    assert "Deployment" not in {item["kind"] for item in objects}
    spec = only(objects, "LeaderWorkerSet")["spec"]
    assert spec["replicas"] == 1
    assert spec["rolloutStrategy"]["rollingUpdateConfiguration"] == {
        "maxSurge": 0, "maxUnavailable": 1,
    }  # fmt: skip
    group = spec["leaderWorkerTemplate"]
    assert (group["size"], group["restartPolicy"]) == (2, "RecreateGroupOnPodRestart")
    leader, worker = (
        group[f"{role}Template"]["spec"]["containers"][0] for role in ("leader", "worker")
    )
    place = [
        "--nnodes=2",
        "--node-rank=0",
        "--master-addr=$(LWS_LEADER_ADDRESS)",
        "--master-port=29501",
    ]
    assert leader["args"][-4:] == place
    assert worker["args"] == [
        *leader["args"][:-3], "--node-rank=$(LWS_WORKER_INDEX)", *place[2:], "--headless",
    ]  # fmt: skip
    assert leader["resources"] == worker["resources"]
    assert "readinessProbe" in leader
    assert not {"ports", "startupProbe", "readinessProbe", "livenessProbe"} & worker.keys()
    queue = "kueue.x-k8s.io/queue-name"
    queued = {item["kind"] for item in objects if queue in item["metadata"]["labels"]}
    assert queued == {"LeaderWorkerSet", "Job"}
    assert only(objects, "LeaderWorkerSet")["metadata"]["labels"][queue] == "team"


def test_requests_reach_leaders_only(tree: Tree) -> None:
    objects = tree("several hosts")
    assert only(objects, "Service")["spec"]["selector"]["tuneline/role"] == "leader"
    pool = only(objects, "InferencePool")["spec"]["selector"]["matchLabels"]
    assert pool["tuneline/role"] == "leader"


def test_the_budget_counts_workers_too(tree: Tree) -> None:
    objects = tree("several hosts")
    chosen = only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items()
    group = only(objects, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    for role in ("leader", "worker"):
        assert chosen <= group[f"{role}Template"]["metadata"]["labels"].items()


def test_an_autoscaler_scales_groups(tree: Tree) -> None:
    objects = tree("several hosts that scale")
    target = only(objects, "ScaledObject")["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "name": "support-tickets-model-server",
    }
    assert "replicas" not in only(objects, "LeaderWorkerSet")["spec"]


def test_kserve_makes_the_pods_that_the_service_selects(tree: Tree) -> None:
    objects = tree("KServe")
    assert "Deployment" not in {item["kind"] for item in objects}
    spec = only(objects, "LLMInferenceService")["spec"]
    # The labels are a part of the selector, so another model has the same ones.
    assert spec["labels"] == only(objects, "Service")["spec"]["selector"]
    (container,) = spec["template"]["containers"]
    assert container["name"] == "main"
    assert container["command"] == ["vllm", "serve"]
    assert container["lifecycle"] == {"preStop": {"exec": {"command": ["/bin/sleep", "15"]}}}
    assert spec["model"]["uri"].startswith("oci://registry.example.com/")
    assert spec["storageInitializer"] == {"enabled": False}
    (threads,) = (entry for entry in container["env"] if entry["name"] == "OMP_NUM_THREADS")
    assert threads["valueFrom"]["resourceFieldRef"]["containerName"] == "main"
    uri = only(tree("KServe with a long name"), "LLMInferenceService")["spec"]["model"]["uri"]
    assert uri == f"pvc://models/{'r' * 42}-0123456789ab"


GPU = {"overlay": "gpu", "model_image": "m:1"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({**GPU, "hosts": 2}, "hosts above 1 and workload: leader-worker-set go together"),
        ({**GPU, "workload": "leader-worker-set"}, "go together"),
        (
            {"overlay": "cpu", "hosts": 2, "workload": "leader-worker-set"},
            "hosts above 1 needs overlay: gpu",
        ),
        (
            {"hosts": 2, "workload": "leader-worker-set", "model_claim": "models"},
            "model_claim_mode: ReadWriteOnce is for one host",
        ),
        (
            {
                "workload": "llm-inference-service",
                "autoscaling": {"by": "hpa", "max_replicas": 2},
                "monitoring_namespace": "m",
            },
            "autoscaling scales a Deployment that KServe owns",
        ),
        ({"workload": "stateful-set"}, "workload: "),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        validate_config(DeployConfig, values, "run.yaml: k8s")


def test_a_name_that_is_too_long_for_a_stateful_set_is_refused(
    tmp_path: Path, tree: Tree, render_run: Callable[..., Path]
) -> None:
    from tests.unit.k8s.conftest import WORKLOADS as TREES

    options = {**TREES["several hosts with a long name"], "name": "r" * 40}
    with pytest.raises(ConfigError, match="expected at most 52"):
        render_run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"workload": "llm-inference-service"}, {"helm": True}])
def test_without_kubectl_another_workload_is_refused(
    tmp_path: Path,
    render_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr("k8s.render.kustomize.find_kubectl", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingError, match="expected kubectl"):
        render_run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
