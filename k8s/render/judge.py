"""The judge of a canary: a Job that proves its answers and compares its speed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from k8s.config import PORT, LoadTestResources
from k8s.render.facts import Document, Facts, server_name
from k8s.render.job import LoadTestJob, job_kustomization, prompts_on_claim, write_inputs
from k8s.render.kustomize import MANIFESTS, dump_yaml, key_from_secret, write_yaml
from k8s.render.workloads.write import OBJECTS, built

REFERENCE = "/results/{}-reference"
"""The folder on `results_claim` to which the user copies the run's reference."""


def write_judge(facts: Facts, job: LoadTestJob, tree: Path, *, model: str) -> None:
    """Add `judge/` to a rendered tree.

    Args:
        model: The name with the digest, by which the canary is asked.

    Raises:
        ConfigError: Not even one prompt fits a ConfigMap.
        MissingError: Neither kubectl nor kustomize is here, and an AnalysisTemplate is wanted.
    """
    judge = facts.config.judge
    assert judge is not None  # noqa: S101 (the caller looks)
    shutil.copytree(MANIFESTS / "judge", tree / "k8s" / "judge")
    directory = tree / "judge"
    directory.mkdir()
    kustomization = job_kustomization(facts, "judge", "judge", job)
    write_yaml(directory / "kustomization.yaml", kustomization)
    write_yaml(directory / "job.yaml", _patch(facts, job, judge.stable, model))
    write_inputs(directory, facts, job)
    if judge.by == "analysis-template":
        _write_template(tree)


def _patch(facts: Facts, loadtest: LoadTestJob, stable: str, model: str) -> Document:
    """Return what one run changes in the Job of `manifests/judge`."""
    config, name = facts.config, facts.name
    job = yaml.safe_load((MANIFESTS / "judge" / "job.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["template"]["spec"]
    (prove,), (compare,) = pod["initContainers"], pod["containers"]
    out = f"/results/{name}-$(JOB_UID)"
    urls = [f"http://{server}:{PORT}/v1" for server in (server_name(stable), facts.server)]
    prove["args"] = _told(
        prove["args"],
        {
            "--reference": REFERENCE.format(name), "--candidate": urls[1], "--model": model,
            "--dtype": facts.dtype, "--out": f"{out}-parity",
        },
    )  # fmt: skip
    told = {"--model": stable, "--model-b": model, "--out": f"{out}-speed"}
    if config.loadtest_prompts == "claim":
        told["--prompts"] = prompts_on_claim(name)
    args = [arg for arg in compare["args"][2:] if loadtest.sends_prompts or "--prompts" not in arg]
    compare["args"] = [*urls, *_told(args, told)]
    own = []
    for container in (prove, compare):
        made = {
            "name": container["name"],
            "image": config.loadtest_image,
            "args": container["args"],
            "env": [key_from_secret(config)],
        }
        if config.loadtest_resources != LoadTestResources():
            asked = config.loadtest_resources.model_dump()
            made["resources"] = {"requests": asked, "limits": asked}
        own.append(made)
    claim = {"name": "results", "persistentVolumeClaim": {"claimName": config.results_claim}}
    spec = {"initContainers": own[:1], "containers": own[1:], "volumes": [claim]}
    return {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "metadata": {"name": job["metadata"]["name"]},
        "spec": {"activeDeadlineSeconds": loadtest.judge_deadline_s, "template": {"spec": spec}},
    }


def _told(args: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return `--flag=value` arguments with other values."""
    flags = [arg.partition("=")[0] for arg in args]
    return [
        f"{flag}={values[flag]}" if flag in values else arg
        for flag, arg in zip(flags, args, strict=True)
    ]


def _write_template(tree: Path) -> None:
    """Put an AnalysisTemplate of Argo Rollouts in the place of the Job.

    Neither names nor labels of kustomize reach the Job inside of it, so the directory is built
    first.
    """
    directory = tree / "judge"
    objects = [analysis_template(item) for item in built(directory)]
    shutil.rmtree(directory)
    shutil.rmtree(tree / "k8s" / "judge")
    directory.mkdir()
    text = "---\n".join(dump_yaml(item) for item in objects)
    (directory / OBJECTS).write_text(text, encoding="utf-8")
    kustomization: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [OBJECTS],
    }
    write_yaml(directory / "kustomization.yaml", kustomization)


def analysis_template(item: Document) -> Document:
    """Return a Job as an AnalysisTemplate whose one measurement is that Job; other objects stay."""
    if item["kind"] != "Job":
        return item
    labels = {"labels": item["metadata"]["labels"]}
    measured = {
        "name": "judge",
        # By default Argo Rollouts measures again after an error.
        "failureLimit": 0,
        "consecutiveErrorLimit": 0,
        "provider": {"job": {"metadata": labels, "spec": item["spec"]}},
    }
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AnalysisTemplate",
        "metadata": item["metadata"],
        "spec": {"metrics": [measured]},
    }
