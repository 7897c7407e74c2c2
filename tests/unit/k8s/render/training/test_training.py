"""The manifests of a training: its pods, its secrets, and the pods of several hosts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

import k8s
from k8s.config import DeployConfig
from k8s.render.training.table import KINDS
from k8s.rules.check import check_manifests
from k8s.training_config import TrainingJob
from tests.unit.k8s.only import only
from tuneline.core.config import validate_config
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.training_limits import MEASUREMENT_S, TRAINING_EXIT_MARGIN_S

Objects: TypeAlias = list[dict[str, Any]]
ROOM = Path(k8s.__file__).parent
IMAGE = "registry.example.com/tuneline-training:0.1.0"


def pod(objects: Objects) -> Any:
    return only(objects, "Job")["spec"]["template"]["spec"]


def env(container: Any) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_the_manifests_of_the_repository_meet_the_rules(
    objects_of: Callable[..., Objects],
) -> None:
    objects = objects_of(ROOM / "manifests" / "training")
    assert {item["kind"] for item in objects} == {
        "ConfigMap", "Job", "NetworkPolicy", "ServiceAccount",
    }  # fmt: skip
    # A user gives it a name and a namespace of their own.
    assert check_manifests(objects) == []


def test_each_kind_is_a_row(tree: Callable[[str], Objects]) -> None:
    kinds = TrainingJob.model_fields["kind"].annotation
    assert set(kinds.__args__) == set(KINDS)  # type: ignore[union-attr]
    only(tree("training"), "Job")
    only(tree("training job-set"), "JobSet")
    only(tree("training train-job"), "TrainJob")
    only(tree("training train-job"), "TrainingRuntime")
    assert only(tree("training search"), "Job")["spec"]["completionMode"] == "Indexed"


def test_the_grace_period_is_the_sum_of_what_follows_sigterm(
    tmp_path: Path, render_a_training: Callable[..., Path], objects_of: Callable[..., Objects]
) -> None:
    training = {"image": IMAGE, "work_claim": "work", "checkpoint_s": 200}
    objects = objects_of(render_a_training(tmp_path / "out", training=training))
    assert (
        pod(objects)["terminationGracePeriodSeconds"]
        == MEASUREMENT_S + 200 + TRAINING_EXIT_MARGIN_S
    )
    text = only(objects, "Job")["spec"]["template"]["metadata"]["annotations"]
    numbers = [int(n) for n in re.findall(r"\b(\d+) s\b", text["tuneline/formula-grace-period"])]
    assert sum(numbers) == pod(objects)["terminationGracePeriodSeconds"]


def test_the_base_manifest_has_the_default_grace_period() -> None:
    job = yaml.safe_load((ROOM / "manifests" / "training" / "job.yaml").read_text())
    training = TrainingJob(image=IMAGE, work_claim="work")
    assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == training.grace_s


def test_a_training_from_storage_has_no_claim(tree: Callable[[str], Objects]) -> None:
    objects = tree("training from storage")
    spec = pod(objects)
    assert not [v for v in spec["volumes"] if "persistentVolumeClaim" in v]
    (copy,) = spec["initContainers"]
    assert copy["command"] == ["tuneline", "pull"]
    assert copy["args"] == ["s3://data/tickets", "--out=/data/files", "--files"]
    assert "nvidia.com/gpu" not in copy["resources"]["limits"]
    (train,) = spec["containers"]
    assert train["args"][-1] == "--push-to=s3://models/runs"
    assert train["resources"]["limits"]["nvidia.com/gpu"] == "1"
    # Three folders of 100 GiB and 2 GiB.
    assert train["resources"]["limits"]["ephemeral-storage"] == f"{302 * 1024}Mi"
    for container in (copy, train):
        assert container["envFrom"] == [{"secretRef": {"name": "storage"}}]
    assert env(train)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert "HF_TOKEN" not in env(copy)
    assert [t["key"] for t in spec["tolerations"]] == ["nvidia.com/gpu", "team"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert spec["securityContext"].keys() == {
        "runAsNonRoot",
        "fsGroupChangePolicy",
        "seccompProfile",
    }
    assert only(objects, "Job")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    policy = only(objects, "NetworkPolicy")["spec"]
    assert [port["port"] for port in policy["egress"][0]["ports"]] == [443, 9000]
    assert "ingress" not in policy


@pytest.mark.parametrize("name", ["training job-set", "training train-job"])
def test_several_hosts_find_one_another(tree: Callable[[str], Objects], name: str) -> None:
    objects = tree(name)
    kind = "JobSet" if name.endswith("job-set") else "TrainingRuntime"
    spec = only(objects, kind)["spec"]
    spec = spec if kind == "JobSet" else spec["template"]["spec"]
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (2, 2, 0)
    (container,) = job["template"]["spec"]["containers"]
    found = env(container)
    assert found["WORLD_SIZE"] == "2"
    assert found["MASTER_ADDR"] == "support-tickets-train-node-0-0.support-tickets-train"
    assert found["MASTER_PORT"] == str(container["ports"][0]["containerPort"])
    assert found["RANK"]["fieldRef"]["fieldPath"].endswith("job-completion-index']")
    policy = only(objects, "NetworkPolicy")["spec"]
    labels = job["template"]["metadata"]["labels"]
    (ingress,) = policy["ingress"]
    (peer,) = ingress["from"]
    assert peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert ingress["ports"] == [{"protocol": "TCP", "port": 1024, "endPort": 65535}]


def test_a_search_shares_one_study(tree: Callable[[str], Objects]) -> None:
    job = only(tree("training search"), "Job")["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (4, 4, 12)
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["tuneline", "search"]
    assert container["args"] == [
        "/config/run.yaml",
        "--runs-dir=/work/runs",
        "--out=/work/runs/support-tickets.best.yaml",
    ]


def test_equal_inputs_give_equal_bytes_and_a_changed_tree_is_kept(
    tmp_path: Path, render_a_training: Callable[..., Path]
) -> None:
    training = {"image": IMAGE, "work_claim": "work"}
    first, second = (
        render_a_training(tmp_path / name, training=training) for name in ("first", "second")
    )
    files = sorted(path.name for path in first.iterdir())
    assert files == [
        "config-map.yaml", "kustomization.yaml", "network-policy.yaml", "render.json",
        "service-account.yaml", "workload.yaml",
    ]  # fmt: skip
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    render_a_training(first, training=training)
    (first / "workload.yaml").write_text("mine")
    with pytest.raises(ArtifactError, match=r"workload\.yaml: was changed"):
        render_a_training(first, training=training)


def test_a_run_without_the_section_is_told_what_to_type(
    tmp_path: Path, render_a_training: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=r"k8s\.training: missing") as caught:
        render_a_training(tmp_path / "out")
    assert "--set k8s.training.image=" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


CLAIM = {"image": IMAGE, "work_claim": "work"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"image": "training"}, "can change at any time"),
        ({"image": IMAGE, "data_url": "s3://a/b"}, "the artifacts would be lost with the pod"),
        ({"image": IMAGE, "push_to": "s3://a/b"}, "give work_claim or data_url"),
        ({**CLAIM, "push_to": "/models"}, "push_to: "),
        ({**CLAIM, "push_to": "s3://bucket"}, "push_to: "),
        ({**CLAIM, "workers": 2}, "workers goes with kind: search"),
        ({**CLAIM, "hosts": 2}, "hosts above 1 goes with kind: job-set or train-job"),
        (
            {
                "image": IMAGE,
                "kind": "job-set",
                "hosts": 2,
                "data_url": "s3://a/b",
                "push_to": "s3://a/b",
            },
            "needs work_claim",
        ),
        (
            {"image": IMAGE, "kind": "search", "data_url": "s3://a/b", "push_to": "s3://a/b"},
            "kind: search keeps its study on work_claim",
        ),
        ({**CLAIM, "kind": "search", "push_to": "s3://a/b"}, "push_to has no meaning for a search"),
        ({**CLAIM, "kind": "cron-job"}, "kind: "),
        ({**CLAIM, "checkpoint_s": 0}, "checkpoint_s: "),
    ],
)
def test_a_section_that_cannot_run_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        validate_config(DeployConfig, {"training": values}, "run.yaml: k8s")


def test_a_name_that_is_too_long_for_so_many_hosts_is_refused(
    tmp_path: Path, render_a_training: Callable[..., Path]
) -> None:
    training = {**CLAIM, "kind": "job-set", "hosts": 11}
    with pytest.raises(ConfigError, match="a pod's may have 63"):
        render_a_training(tmp_path / "out", name="r" * 42, training=training)
    assert not (tmp_path / "out").exists()
