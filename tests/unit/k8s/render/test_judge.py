"""The Job that judges a canary, and the AnalysisTemplate with the same Job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from k8s.config import DeployConfig
from k8s.rules.objects import env, flags
from tests.unit.k8s.only import only
from tuneline.core.errors import ConfigError

Objects: TypeAlias = list[dict[str, Any]]
Render: TypeAlias = Callable[..., Path]
ObjectsOf: TypeAlias = Callable[..., Objects]

IMAGE = "registry.example.com/tuneline-loadtest:0.1.0"
JUDGED = {"loadtest_image": IMAGE, "results_claim": "results", "judge": {"stable": "first"}}


def test_the_job_proves_the_canary_and_compares_it_with_the_stable_run(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    out = render_run(
        tmp_path / "out", name="next", judge_deadline_s=5000, dtype="bfloat16", **JUDGED
    )
    objects = objects_of(out / "judge")
    spec = only(objects, "Job")["spec"]
    assert spec["activeDeadlineSeconds"] == 5000
    pod = spec["template"]["spec"]
    (prove,), (compare,) = pod["initContainers"], pod["containers"]
    server = "http://next-model-server:8000/v1"
    assert flags(prove["args"]) == {
        "": [], "--reference": ["/results/next-reference"], "--candidate": [server],
        "--model": ["next@0123456789ab"], "--dtype": ["bfloat16"],
        "--out": ["/results/next-$(JOB_UID)-parity"], "--json": [],
    }  # fmt: skip
    assert flags(compare["args"]) == {
        "": ["http://first-model-server:8000/v1", server], "--run": ["/config/run.yaml"],
        "--model": ["first"], "--model-b": ["next@0123456789ab"],
        "--prompts": ["/config/prompts.jsonl"], "--out": ["/results/next-$(JOB_UID)-speed"],
        "--json": [],
    }  # fmt: skip
    assert {container["image"] for container in (prove, compare)} == {IMAGE}
    for container in (prove, compare):
        reference = env(container)["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": "tuneline-api-key", "key": "api-key"}
    claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if v["name"] == "results"]
    assert claims == [{"claimName": "results"}]
    data = only(objects, "ConfigMap")["data"]
    assert sorted(data) == ["prompts.jsonl", "run.yaml"]
    # A Deployment of the stable run and of the canary have this label; no other pod is reached.
    policy = only(objects, "NetworkPolicy")["spec"]
    (peer,) = policy["egress"][0]["to"]
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "model-server"}
    labels = spec["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()


def test_an_analysis_template_has_the_same_job(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    options = {"name": "next", "queue_name": "team", "image_pull_secrets": ["registry"], **JUDGED}
    job = objects_of(render_run(tmp_path / "job", **options) / "judge")
    options["judge"] = {"stable": "first", "by": "analysis-template"}
    template = objects_of(render_run(tmp_path / "template", **options) / "judge")
    assert {item["kind"] for item in template} == {
        "AnalysisTemplate", "ConfigMap", "NetworkPolicy", "ServiceAccount",
    }  # fmt: skip
    found = only(template, "AnalysisTemplate")
    (metric,) = found["spec"]["metrics"]
    made = metric["provider"]["job"]
    assert made["spec"] == only(job, "Job")["spec"]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert found["metadata"]["name"] == "next-judge"
    others = [item for item in job if item["kind"] != "Job"]
    assert [item for item in template if item["kind"] != "AnalysisTemplate"] == others


def test_prompts_of_a_judge_may_be_on_the_claim(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf
) -> None:
    out = render_run(tmp_path / "out", loadtest_prompts="claim", **JUDGED)
    objects = objects_of(out / "judge")
    (compare,) = only(objects, "Job")["spec"]["template"]["spec"]["containers"]
    assert flags(compare["args"])["--prompts"] == ["/results/support-tickets-prompts.jsonl"]
    assert sorted(only(objects, "ConfigMap")["data"]) == ["run.yaml"]


@pytest.mark.parametrize("part", ["load-test", "judge"])
def test_a_load_test_of_synthetic_requests_takes_no_prompts(
    tmp_path: Path, render_run: Render, objects_of: ObjectsOf, part: str
) -> None:
    loadtest = {"workload": {"source": "synthetic"}}
    out = render_run(tmp_path / "out", loadtest=loadtest, **JUDGED)
    objects = objects_of(out / part)
    (container,) = only(objects, "Job")["spec"]["template"]["spec"]["containers"]
    # The command line refuses prompts that such a load test does not send.
    assert "--prompts" not in flags(container["args"])
    assert sorted(only(objects, "ConfigMap")["data"]) == ["run.yaml"]


def test_a_run_does_not_judge_itself(tmp_path: Path, render_run: Render) -> None:
    with pytest.raises(ConfigError, match=r"k8s.judge.stable: 'first' is this run"):
        render_run(tmp_path / "out", name="first", **JUDGED)


@pytest.mark.parametrize("missing", ["loadtest_image", "results_claim"])
def test_a_judge_needs_an_image_and_a_claim(missing: str) -> None:
    options = {key: value for key, value in JUDGED.items() if key != missing}
    with pytest.raises(ValueError, match="judge uses loadtest_image and results_claim"):
        DeployConfig.model_validate(options)
