"""The section `k8s`: what is refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from k8s.config import DeployConfig
from k8s.value_types import image_problem
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    "reference",
    [
        "vllm/vllm-openai:v0.32.0",
        "registry.example.com:5000/team/server:1.0",
        f"server@{DIGEST}",
        # A digest fixes the content, whatever the tag says.
        f"registry.example.com/server:latest@{DIGEST}",
    ],
)
def test_a_pinned_image_is_taken(reference: str) -> None:
    assert image_problem(reference) is None
    assert DeployConfig(image=reference).image == reference


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("server", "can change at any time"),
        ("registry.example.com:5000/server", "can change at any time"),
        ("vllm/vllm-openai:latest", "can change at any time"),
        ("server@sha256:abc", "is not an image reference"),
        ("https://registry.example.com/server:1", "is not an image reference"),
        ("Server:1", "is not an image reference"),
        ("server:1 --privileged", "is not an image reference"),
        ("", "is not an image reference"),
    ],
)
@pytest.mark.parametrize("key", ["image", "loadtest_image", "model_image"])
def test_any_other_image_is_refused(key: str, reference: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        validate_config(DeployConfig, {key: reference}, "run.yaml: k8s")
    assert f"k8s: {key}: " in caught.value.problems[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"overlay": "tpu"}, "overlay: "),
        ({"replicas": 0}, "replicas: "),
        ({"namespace": "Team A"}, "namespace: "),
        ({"namespace": "a" * 64}, "namespace: "),
        ({"secret_name": "a_b"}, "secret_name: "),
        ({"model_claim": "c", "model_image": "m:1"}, "exclude one another"),
        ({"model_path": "x"}, "give model_claim too"),
        ({"model_claim": "c", "model_path": "../other"}, "leaves the volume"),
        ({"model_claim": "c", "model_path": "/abs"}, "model_path: "),
        ({"overlay": "cpu", "resources": {"gpus": 1}}, "needs overlay: gpu"),
        ({"overlay": "cpu", "resources": {"gpu_resource": "nvidia.com/gpu.shared"}}, "y: gpu"),
        ({"resources": {"gpus": 2, "gpu_resource": "nvidia.com/gpu.shared"}}, "expected 1"),
        ({"resources": {"gpu_resource": "amd.com/gpu"}}, "resources.gpu_resource: "),
        ({"resources": {"memory": "24 GB"}}, "resources.memory: "),
        ({"load_pods": 4}, "needs results_claim"),
        ({"load_pods": 0}, "load_pods: "),
        ({"resources": {"gpus": 0}}, "resources.gpus: "),
        ({"replica": 2}, "did you mean replicas?"),
        ({"training": {"image": "t:1", "work_claim": "w", "ports": [443, 0]}}, "ports.1: "),
        ({"run_as_user": 0}, "run_as_user: "),
        ({"overlay": "cpu", "resources": {"cpu_limit": "4"}}, "leave out cpu_limit"),
        ({"overlay": "cpu", "placement": {"gpu_product": "L4"}}, "needs overlay: gpu"),
        ({"placement": {"tolerations": [{"key": "a", "value": "b"}]}}, "operator: Equal"),
        ({"placement": {"node_selector": {"a b": "c"}}}, "placement.node_selector"),
        ({"autoscaling": {"by": "hpa", "max_replicas": 2}}, "give monitoring_namespace too"),
        (
            {
                "gateway": {
                    "name": "g",
                    "namespace": "n",
                    "route": False,
                    "canary": {"run": "r", "weight": 1},
                }
            },
            "give route: true",
        ),
        ({"monitoring_labels": {"a": "b"}}, "needs monitoring_namespace"),
        ({"verify_model": True}, "give loadtest_image too"),
        (
            {"model_hub": {"repo": "a/b", "revision": "0" * 40}},
            "model_hub may copy another model than this run's; give verify_model: true too",
        ),
        ({"model_fetch": {"image": "a:1", "command": ["/model"]}}, "give verify_model: true too"),
        (
            {"replicas": 3, "autoscaling": {"by": "hpa", "max_replicas": 4}},
            "replicas: 3 has no effect with autoscaling",
        ),
        ({"resources": {"cpu": -4}}, "resources.cpu: "),
        ({"resources": {"cpu": True}}, "resources.cpu: "),
        ({"loadtest_prompts": "claim"}, "needs results_claim"),
        ({"model_hub": {"repo": "a/b", "revision": "main"}}, "model_hub.revision: "),
        ({"model_fetch": {"image": "a", "command": ["/model"]}}, "can change at any time"),
        ({"model_fetch": {"image": "a:1", "command": ["cp", "/m"]}}, "does not name /model"),
        (
            {"model_fetch": {"image": "a:1", "command": ["get", "--token", "abc", "/model"]}},
            "model_fetch: command has a secret",
        ),
        (
            {
                "model_hub": {"repo": "a/b", "revision": "0" * 40},
                "model_fetch": {"image": "a:1", "command": ["/model"]},
            },
            "model_hub and model_fetch exclude one another",
        ),
        ({"autoscaling": {"by": "hpa", "max_replicas": 1, "min_replicas": 2}}, "is above max"),
        ({"autoscaling": {"by": "hpa", "max_replicas": 1, "min_replicas": 0}}, "wake_query"),
        ({"autoscaling": {"by": "keda", "max_replicas": 1}}, "prometheus_url goes with"),
        (
            {"gateway": {"name": "g", "namespace": "n", "canary": {"run": "r", "weight": 100}}},
            "gateway.canary.weight: ",
        ),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config(DeployConfig, values, "run.yaml")
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


def test_quantities_may_be_numbers() -> None:
    resources = DeployConfig.model_validate({"resources": {"cpu": 4, "cpu_limit": 1.5}}).resources
    assert (resources.cpu, resources.cpu_limit) == ("4", "1.5")


def test_the_section_may_be_left_out() -> None:
    assert DeployConfig().image is None
