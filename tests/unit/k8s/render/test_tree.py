"""`render`: what it fills in, what it refuses, and what it never overwrites."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from k8s.render.job import PROMPTS_SIZE_BYTES
from k8s.rules.objects import applied_size, escaped_size, flags
from k8s.rules.updates import check_update
from serving.config import ServingConfig
from tests.unit.k8s.only import only
from tuneline.core.errors import ArtifactError, ConfigError

Objects: TypeAlias = list[dict[str, Any]]
Render: TypeAlias = Callable[..., Path]
ObjectsOf: TypeAlias = Callable[..., Objects]

DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = "registry.example.com/tuneline-server:0.1.0"
LOADTEST_IMAGE = "registry.example.com/tuneline-loadtest:0.1.0"


def server_pod(objects: Objects) -> Any:
    return only(objects, "Deployment")["spec"]["template"]["spec"]


def files(tree: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(tree)): file.read_bytes() for file in tree.rglob("*") if file.is_file()
    }


def test_image_model_names_and_digest_are_filled_in(deployed: Objects) -> None:
    deployment = only(deployed, "Deployment")
    pod = server_pod(deployed)
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert flags(container["args"])["--served-model-name"] == [
        "support-tickets", "support-tickets@0123456789ab",
    ]  # fmt: skip
    template = deployment["spec"]["template"]["metadata"]
    assert template["labels"]["tuneline/model-digest"] == "0123456789ab"
    assert template["annotations"]["tuneline/model-digest"] == DIGEST
    model = container["volumeMounts"][0]
    assert model == {"name": "model", "mountPath": "/model", "readOnly": True}
    assert container["args"][0] == "/model/support-tickets-0123456789ab"
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}


def test_everything_lies_in_the_namespace_under_the_runs_name(deployed: Objects) -> None:
    assert len(deployed) == 18
    for item in deployed:
        assert item["metadata"]["namespace"] == "tuneline"
        assert item["metadata"]["name"].startswith("support-tickets-")
        assert all(len(value) <= 63 for value in item["metadata"]["labels"].values())


def test_the_monitoring_namespace_may_scrape(deployed: Objects) -> None:
    peers = [
        peer
        for policy in deployed
        if policy["kind"] == "NetworkPolicy"
        for rule in policy["spec"].get("ingress", [])
        for peer in rule["from"]
    ]
    scraper, gateway = (
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
        for name in ("observability", "gateways")
    )
    assert peers == [{"podSelector": {}}, gateway, scraper]


def test_no_monitor_without_a_monitoring_namespace(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    objects = objects_of(render_run(tmp_path / "out"))
    assert "ServiceMonitor" not in {item["kind"] for item in objects}
    assert len(only(objects, "NetworkPolicy")["spec"]["ingress"]) == 1
    assert not (tmp_path / "out" / "load-test").exists()  # no image for it was given


def test_the_grace_period_and_the_start_up_budget_follow_the_run(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    serving = ServingConfig(shutdown_timeout=120, ready_timeout_s=1801)
    objects = objects_of(render_run(tmp_path / "out", serving=serving, overlay="cpu", replicas=3))
    pod = server_pod(objects)
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] == 15 + 120 + 15
    probe = container["startupProbe"]
    # vLLM's patience and a minute, rounded up to whole periods.
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1865
    spec = only(objects, "Deployment")["spec"]
    assert spec["progressDeadlineSeconds"] == 1861 + 150 + 300
    assert spec["replicas"] == 3


def test_resources_replace_the_overlays(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    serving = ServingConfig(tensor_parallel_size=2)
    resources = {"cpu": "16", "memory": "96Gi", "gpus": 2}
    objects = objects_of(render_run(tmp_path / "gpu", serving=serving, resources=resources))
    asked = server_pod(objects)["containers"][0]["resources"]
    assert asked == {
        "requests": {
            "cpu": "16",
            "memory": "96Gi",
            "nvidia.com/gpu": "2",
            "ephemeral-storage": "4Gi",
        },
        "limits": {"memory": "96Gi", "nvidia.com/gpu": "2", "ephemeral-storage": "12Gi"},
    }
    objects = objects_of(render_run(tmp_path / "cpu", overlay="cpu", resources={"cpu": 2}))
    asked = server_pod(objects)["containers"][0]["resources"]
    assert asked["limits"] == {"cpu": "2", "memory": "12Gi", "ephemeral-storage": "12Gi"}


@pytest.mark.parametrize("name", ["nvidia.com/mig-3g.40gb", "nvidia.com/gpu.shared"])
def test_a_slice_of_a_gpu_is_asked_for_in_place_of_a_gpu(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf, name: str
) -> None:
    objects = objects_of(render_run(tmp_path / "out", resources={"gpu_resource": name}))
    pod = server_pod(objects)
    asked = pod["containers"][0]["resources"]
    for part in ("requests", "limits"):
        found = {key: n for key, n in asked[part].items() if key.startswith("nvidia.com/")}
        assert found == {name: "1"}
    # NVIDIA's operator taints nodes with this key, whatever they offer.
    assert [entry["key"] for entry in pod["tolerations"]] == ["nvidia.com/gpu"]


def test_a_limit_of_cores_lowers_the_overlays_request(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    objects = objects_of(render_run(tmp_path / "out", resources={"cpu_limit": 2}))
    asked = server_pod(objects)["containers"][0]["resources"]
    assert (asked["requests"]["cpu"], asked["limits"]["cpu"]) == ("2", "2")
    # The user's own request above the user's own limit is a mistake.
    with pytest.raises(ConfigError, match="requests 8 of cpu; its limit is 2"):
        render_run(tmp_path / "other", resources={"cpu": 8, "cpu_limit": "2"})


def test_a_rollout_waits_for_a_model_that_is_copied_and_verified(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    def deadline_s(name: str, **options: Any) -> int:
        out = render_run(tmp_path / name, model_size_bytes=30_000_000_000, **options)
        found: int = only(objects_of(out), "Deployment")["spec"]["progressDeadlineSeconds"]
        return found

    hub = {"repo": "team/tickets", "revision": "a" * 40}
    verified = {"verify_model": True, "loadtest_image": LOADTEST_IMAGE}
    plain = deadline_s("plain")
    assert deadline_s("verified", **verified) == plain + 300  # 30 GB at 100 MB/s
    assert deadline_s("hub", model_hub=hub, **verified) == plain + 300 + 1200  # and 25 MB/s


def test_the_job_tests_this_server_with_this_runs_prompts(deployed: Objects) -> None:
    job = only(deployed, "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    service = only(deployed, "Service")
    port = service["spec"]["ports"][0]["port"]
    args = flags(container["args"])
    assert args["--url"] == [f"http://{service['metadata']['name']}:{port}/v1"]
    assert args["--model"] == ["support-tickets@0123456789ab"]
    keys = [server_pod(deployed)["containers"][0]["env"], container["env"]]
    references = [
        entry["valueFrom"] for env in keys for entry in env if entry["name"] == "VLLM_API_KEY"
    ]
    assert references == [
        {"secretKeyRef": {"name": "tuneline-api-key", "key": "api-key"}}
    ] * 2  # fmt: skip
    (config,) = (
        item
        for item in deployed
        if item["metadata"]["name"] == "support-tickets-load-test" and item["kind"] == "ConfigMap"
    )
    volumes = job["spec"]["template"]["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": config["metadata"]["name"]}} in volumes
    prompts = [json.loads(line) for line in config["data"]["prompts.jsonl"].splitlines()]
    assert [prompt[0]["content"] for prompt in prompts] == [
        f"Ticket {number}: die Rechnung, 청구서" for number in range(5)
    ]
    assert yaml.safe_load(config["data"]["run.yaml"])["name"] == "support-tickets"


def test_prompts_that_do_not_fit_a_config_map_are_left_out_and_counted(
    tmp_path: Path, render_run: Render, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [[{"role": "user", "content": f"{number:05} " + "x" * 1000}] for number in range(500)]
    with caplog.at_level(logging.INFO):
        out = render_run(tmp_path / "out", loadtest_image=LOADTEST_IMAGE, prompts=prompts)
    text = (out / "load-test" / "prompts.jsonl").read_text()
    kept = [json.loads(line) for line in text.splitlines()]
    assert 100 < len(kept) < 500
    assert kept == prompts[: len(kept)]
    assert PROMPTS_SIZE_BYTES - 1100 < escaped_size(text) <= PROMPTS_SIZE_BYTES
    assert f"{len(kept)} of 500 prompts" in caplog.text


def test_prompts_of_html_fit_the_annotation_of_apply(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    # Go writes each of these characters as six bytes.
    prompts = [[{"role": "user", "content": "<td>&amp;</td>" * 70}] for _ in range(500)]
    out = render_run(tmp_path / "out", loadtest_image=LOADTEST_IMAGE, prompts=prompts)
    (config,) = (o for o in objects_of(out / "load-test") if o["kind"] == "ConfigMap")
    assert 20 < len(config["data"]["prompts.jsonl"].splitlines()) < 500
    assert 150_000 < applied_size(config) <= 256 * 1024


@pytest.mark.parametrize(
    ("text", "size"), [("a", 1), ("é", 2), ("<", 6), ("&>", 12), ('"', 2), ("\n", 2), ("\u2028", 6)]
)
def test_sizes_are_those_of_gos_encoder(text: str, size: int) -> None:
    assert escaped_size(text) == size


def test_prompts_may_stay_out_of_the_namespaces_config_maps(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    out = render_run(
        tmp_path / "out",
        loadtest_image=LOADTEST_IMAGE,
        loadtest_prompts="claim",
        results_claim="results",
    )
    objects = objects_of(out / "load-test")
    assert list(only(objects, "ConfigMap")["data"]) == ["run.yaml"]
    (container,) = only(objects, "Job")["spec"]["template"]["spec"]["containers"]
    assert "--prompts=/results/support-tickets-prompts.jsonl" in container["args"]
    assert not any("Ticket 1" in text.decode(errors="ignore") for text in files(out).values())


def test_the_jobs_values_leave_nothing_behind(deployed: Objects) -> None:
    # A name with a hash would keep the prompts of every earlier rendering in the cluster.
    # The signature has one: a roll-back needs the signature of the earlier model.
    names = [item["metadata"]["name"] for item in deployed if item["kind"] == "ConfigMap"]
    dashboard, signature, load_test = names
    assert dashboard == "support-tickets-model-server-dashboard"
    assert re.fullmatch(r"support-tickets-release-signature-[0-9a-z]{10}", signature)
    assert load_test == "support-tickets-load-test"


@pytest.mark.parametrize("digits", ["123456789e01", "012345678901", "0e1234567890"])
def test_digits_that_yaml_reads_as_a_number_stay_text(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf, digits: str
) -> None:
    digest = f"sha256:{digits}{'0' * 52}"
    objects = objects_of(render_run(tmp_path / "out", digest=digest, name="y", namespace="n"))
    assert only(objects, "Deployment")["metadata"]["labels"]["tuneline/model-digest"] == digits
    assert {item["metadata"]["namespace"] for item in objects} == {"n"}


def test_a_second_rendering_changes_nothing_that_is_fixed(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf, deployed: Objects
) -> None:
    other = objects_of(
        render_run(
            tmp_path / "out", digest="sha256:" + "f" * 64, overlay="cpu", model_image="models:1"
        )
    )
    selector = only(deployed, "Deployment")["spec"]["selector"]
    assert selector["matchLabels"]
    assert list(check_update(deployed, other)) == []


def test_one_prompt_larger_than_a_config_map_is_an_error(
    tmp_path: Path, render_run: Render
) -> None:
    prompts = [[{"role": "user", "content": "x" * PROMPTS_SIZE_BYTES}]]
    with pytest.raises(ConfigError, match="a ConfigMap takes 196,608"):
        render_run(tmp_path / "out", loadtest_image=LOADTEST_IMAGE, prompts=prompts)
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, render_run: Render) -> None:
    options = {"loadtest_image": LOADTEST_IMAGE, "monitoring_namespace": "monitoring"}
    first = files(render_run(tmp_path / "a", **options))
    second = files(render_run(tmp_path / "b", **options))
    assert len(first) > 15
    assert first == second
    assert not any(str(tmp_path).encode() in content for content in first.values())


def test_an_earlier_output_is_replaced(tmp_path: Path, render_run: Render) -> None:
    out = render_run(tmp_path / "out", loadtest_image=LOADTEST_IMAGE)
    assert (out / "load-test").is_dir()
    render_run(out, replicas=2)
    assert not (out / "load-test").exists()
    assert yaml.safe_load((out / "server.yaml").read_text())["spec"]["replicas"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _edit(out: Path) -> None:
    (out / "server.yaml").write_text("# by hand\n")


def _add(out: Path) -> None:
    (out / "ingress.yaml").write_text("kind: Ingress\n")


def _remove(out: Path) -> None:
    (out / "k8s" / "base" / "service.yaml").unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [(_edit, "server.yaml"), (_add, "ingress.yaml"), (_remove, "k8s/base/service.yaml")],
)
def test_an_output_changed_by_hand_is_kept(
    tmp_path: Path, render_run: Render, change: Callable[[Path], None], named: str
) -> None:
    out = render_run(tmp_path / "out")
    change(out)
    before = files(out)
    with pytest.raises(ArtifactError, match=rf"{named}: was changed") as caught:
        render_run(out)
    assert caught.value.exit_code == 3
    assert files(out) == before


@pytest.mark.parametrize("marker", [None, "", "[]", '{"files": 3}'])
def test_any_other_directory_is_kept(
    tmp_path: Path, render_run: Render, marker: str | None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    if marker is not None:
        (out / "render.json").write_text(marker)
    before = files(out)
    with pytest.raises(ArtifactError, match="was not written by"):
        render_run(out)
    assert files(out) == before


def test_a_file_is_not_taken_for_a_directory(tmp_path: Path, render_run: Render) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArtifactError, match="was not written by"):
        render_run(tmp_path / "out")


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path, render_run: Render) -> None:
    with pytest.raises(ConfigError) as caught:
        render_run(tmp_path / "out", name="3-tickets", image=None, model_claim=None)
    problems = caught.value.problems
    assert [problem.partition(":")[0] for problem in problems] == [
        "k8s.image", "k8s.model_claim, k8s.model_image", "name",
    ]  # fmt: skip
    assert "Dockerfile.server" in problems[0]
    assert caught.value.hint == (
        "Try: --set k8s.image=registry.example.com/tuneline-server-gpu:v0.32.0 "
        "--set k8s.model_claim=models"
    )
    # A hint names only what is missing.
    with pytest.raises(ConfigError) as caught:
        render_run(tmp_path / "out", model_claim=None)
    assert caught.value.hint == "Try: --set k8s.model_claim=models"
    with pytest.raises(ConfigError) as caught:
        render_run(tmp_path / "out", name="3-tickets")
    assert caught.value.hint is None


def test_a_secret_among_the_variables_is_refused(tmp_path: Path, render_run: Render) -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN is a secret") as caught:
        render_run(tmp_path / "out", served_env={"HF_TOKEN": "hf_never_shown"})
    assert "hf_never_shown" not in str(caught.value)


def test_manifests_that_break_a_rule_are_not_kept(
    tmp_path: Path, render_run: Render, kubectl: str
) -> None:
    with pytest.raises(ConfigError, match=r"use 2 GPU\(s\) and the pod has 1"):
        render_run(tmp_path / "out", serving=ServingConfig(tensor_parallel_size=2))
    with pytest.raises(ConfigError, match="VLLM_CPU_KVCACHE_SPACE 64 GiB leaves no room"):
        render_run(tmp_path / "out", overlay="cpu", serving=ServingConfig(cpu_kvcache_space_gib=64))
    assert list(tmp_path.iterdir()) == []


def test_without_kubectl_the_manifests_are_written_and_said_to_be_unchecked(
    tmp_path: Path,
    render_run: Render,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checked = files(render_run(tmp_path / "a"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "empty" / "python"))
    with caplog.at_level(logging.WARNING):
        unchecked = files(render_run(tmp_path / "b"))
    assert "were not checked" in caplog.text
    assert unchecked == checked
