"""Users, nodes and queues of the pods."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

import k8s

Objects: TypeAlias = list[dict[str, Any]]
IMAGE = "registry.example.com/tuneline-loadtest:0.1.0"
Rendered: TypeAlias = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def rendered(
    tmp_path: Path, render_run: Callable[..., Path], objects_of: Callable[..., Objects]
) -> Rendered:
    """Return the Deployment and the Job by their kind."""

    def objects(**options: Any) -> dict[str, dict[str, Any]]:
        out = render_run(tmp_path / "out", loadtest_image=IMAGE, **options)
        return {
            item["kind"]: item
            for item in objects_of(out, out / "load-test")
            if item["kind"] in ("Deployment", "Job")
        }

    return objects


def pod(item: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = item["spec"]["template"]["spec"]
    return found


def test_openshift_names_the_user_itself(rendered: Rendered) -> None:
    for item in rendered(run_as_user=None, queue_name="team").values():
        context = pod(item)["securityContext"]
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(context)
        assert context["runAsNonRoot"] is True
        assert item["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_the_loaders_ids_can_be_left_to_openshift(kubectl: str) -> None:
    """The expression `/: 10001$/d` of the page on Kubernetes."""
    folder = Path(k8s.__file__).parent / "manifests/model-volume"
    text = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    kept = [line for line in text.splitlines() if not re.search(r": 10001$", line)]
    assert len(text.splitlines()) - len(kept) == 3
    objects = list(yaml.safe_load_all("\n".join(kept)))
    (loader,) = (item["spec"] for item in objects if item["kind"] == "Pod")
    # A second use, with another claim in the `sed`, makes no volume and resizes none.
    assert "PersistentVolumeClaim" not in {item["kind"] for item in objects}
    claim = yaml.safe_load((folder / "claim.yaml").read_text())
    assert loader["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert loader["securityContext"] == {
        "fsGroupChangePolicy": "OnRootMismatch",
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    # A quota on limits.cpu refuses a pod without one.
    assert loader["containers"][0]["resources"]["limits"]["cpu"] == "1"


def test_pods_go_to_the_named_nodes(rendered: Rendered) -> None:
    placement = {
        "node_selector": {"zone": "a"},
        "gpu_product": "NVIDIA-L4",
        "tolerations": [{"key": "team", "effect": "NoSchedule"}],
        "priority_class": "high",
        "runtime_class": "nvidia",
    }
    found = rendered(placement=placement, resources={"cpu_limit": "8"})
    server = pod(found["Deployment"])
    assert server["nodeSelector"] == {"zone": "a", "nvidia.com/gpu.product": "NVIDIA-L4"}
    assert server["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "team", "operator": "Exists", "effect": "NoSchedule"},
    ]
    assert (server["priorityClassName"], server["runtimeClassName"]) == ("high", "nvidia")
    assert server["containers"][0]["resources"]["limits"]["cpu"] == "8"
    # The load test needs no GPU and shares no node with the server by wish.
    assert "nodeSelector" not in pod(found["Job"])


def test_pods_that_share_a_claim_share_a_node(rendered: Rendered) -> None:
    (term,) = pod(rendered(replicas=2)["Deployment"])["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "model-server",
        "app.kubernetes.io/instance": "support-tickets",
    }


def test_a_new_pod_may_start_before_the_old_one_ends(rendered: Rendered) -> None:
    spec = rendered(surge=True, scheduling_s=1200)["Deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["progressDeadlineSeconds"] == 660 + 60 + 1200
