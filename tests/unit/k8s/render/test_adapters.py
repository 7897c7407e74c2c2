"""Adapters at run time: the claim, the list as a ConfigMap, and the Job that brings them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from k8s.config import DeployConfig
from serving import read_desired

Objects: TypeAlias = list[dict[str, Any]]


def one(objects: Objects, kind: str, end: str) -> dict[str, Any]:
    (found,) = (
        item for item in objects if item["kind"] == kind and end in item["metadata"]["name"]
    )
    return found


def test_a_job_brings_the_list_to_the_server(
    tree: Callable[[str], Objects], tmp_path: Path
) -> None:
    objects = tree("adapters")
    job = one(objects, "Job", "-adapters-")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["tuneline", "adapters", "apply"]
    assert container["args"] == [
        "http://support-tickets-model-server:8000/v1", "/config/desired.json", "--json",
    ]  # fmt: skip
    (key,) = (e["valueFrom"]["secretKeyRef"] for e in container["env"] if "valueFrom" in e)
    assert key == {"name": "tuneline-admin-key", "key": "api-key"}
    # The Job sees no adapter: it names folders of the server's claim, and their digests.
    volumes = job["spec"]["template"]["spec"]["volumes"]
    assert not [volume for volume in volumes if "persistentVolumeClaim" in volume]
    data = one(objects, "ConfigMap", "-adapters")["data"]
    (tmp_path / "desired.json").write_text(data["desired.json"])
    (entry,) = read_desired(tmp_path / "desired.json").values()
    assert (entry.adapter, entry.digest) == ("/adapters/replies/adapter-1", "sha256:" + "e" * 64)
    pod = one(objects, "Deployment", "")["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    (mount,) = (m for m in server["volumeMounts"] if m["name"] == "adapters")
    assert mount == {"name": "adapters", "mountPath": "/adapters"}
    env = {entry["name"]: entry.get("value") for entry in server["env"]}
    settings = json.loads(env["TUNELINE_ADAPTERS"])
    assert settings["base_dir"] == server["args"][0] == "/model/support-tickets-0123456789ab"


def test_another_list_is_another_job(tree: Callable[[str], Objects]) -> None:
    names = {
        one(tree(name), "Job", "-adapters-")["metadata"]["name"][-8:]
        for name in ("adapters", "adapters with a long name")
    }
    assert len(names) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loadtest_image": None}, "adapters uses loadtest_image and keys_secret_name"),
        ({"keys_secret_name": None}, "adapters uses loadtest_image and keys_secret_name"),
        ({"replicas": 2}, "adapters are those of one pod"),
        ({"surge": True}, "adapters are those of one pod"),
        (
            {"autoscaling": {"by": "hpa", "max_replicas": 2}, "monitoring_namespace": "m"},
            "adapters are those of one pod",
        ),
        ({"workload": "llm-inference-service"}, "adapters goes with workload: deployment"),
    ],
)
def test_adapters_that_a_server_could_not_keep_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    options = {
        "loadtest_image": "registry.example.com/tuneline-loadtest:1",
        "keys_secret_name": "keys",
        "adapters": {"claim": "adapters"},
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        DeployConfig.model_validate(options)
