"""The load test of a run as a Job: its kustomization, its run.yaml and its prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from k8s.config import DeployConfig, LoadTestResources
from k8s.render.components.table import wanted_components
from k8s.render.facts import Facts
from k8s.render.kustomize import (
    INSTANCE_LABEL,
    MANIFESTS,
    common,
    key_from_secret,
    plain_labels,
    write_yaml,
)
from k8s.rules.objects import escaped_size
from tuneline.core.errors import ConfigError
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger

# `kubectl apply` keeps a copy of an object in one annotation of at most 256 KiB, and writes the
# characters <, > and & as six bytes each. The rest is for run.yaml.
PROMPTS_SIZE_BYTES = 192 * 1024
# Time for all load pods to be scheduled, and for the first pod to join their results.
GATHER_S = 1200


@dataclass(frozen=True)
class LoadTestJob:
    """The requests of the load test of a run, and its limit of time."""

    run_config: Mapping[str, Any]
    """The whole resolved run.yaml."""
    prompts: Sequence[ChatPrompt]
    """Chat messages. As many as fit a ConfigMap are taken."""
    deadline_s: int = 3600
    """Seconds after which the Job is ended: more than the load test can take."""
    judge_deadline_s: int = 7200
    """The same for the Job that judges a canary."""

    @property
    def sends_prompts(self) -> bool:
        """Return whether the load test sends prompts; synthetic requests have none."""
        workload = self.run_config.get("loadtest", {}).get("workload", {})
        return bool(workload.get("source", "prompts") == "prompts")


def write_loadtest(facts: Facts, job: LoadTestJob, tree: Path, *, url: str, model: str) -> None:
    """Add `load-test/` to a rendered tree.

    Args:
        url: The server's Service, up to and with `/v1`.
        model: The name to ask for; the one with the digest binds the report to the artifact.

    Raises:
        ConfigError: Not even one prompt fits a ConfigMap.
    """
    shutil.copytree(MANIFESTS / "loadtest", tree / "k8s" / "loadtest")
    directory = tree / "load-test"
    directory.mkdir()
    kustomization = job_kustomization(facts, "load-test", "loadtest", job)
    write_yaml(directory / "kustomization.yaml", kustomization)
    write_yaml(directory / "job.yaml", _job_patch(facts, job, url, model))
    write_inputs(directory, facts, job)


def write_inputs(directory: Path, facts: Facts, job: LoadTestJob) -> None:
    """Write run.yaml and the prompts that fit a ConfigMap.

    Raises:
        ConfigError: Not even one prompt fits.
    """
    write_yaml(directory / "run.yaml", job.run_config)
    if facts.config.loadtest_prompts == "claim" or not job.sends_prompts:
        return
    lines = _fitting([json.dumps(prompt, ensure_ascii=False) for prompt in job.prompts])
    if len(lines) < len(job.prompts):
        logger.info(
            "load test: %d of %d prompts fit a ConfigMap and are taken",
            len(lines), len(job.prompts),
        )  # fmt: skip
    (directory / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")


def job_kustomization(facts: Facts, part: str, folder: str, job: LoadTestJob) -> dict[str, Any]:
    """Return the kustomization of a Job of `k8s/manifests/` whose ConfigMap has its inputs."""
    files = ["run.yaml"]
    if facts.config.loadtest_prompts == "config-map" and job.sends_prompts:
        files.append("prompts.jsonl")
    return {
        **common(facts),
        "resources": [f"../k8s/{folder}"],
        "generatorOptions": {"disableNameSuffixHash": True},
        "configMapGenerator": [{"name": part, "behavior": "replace", "files": files}],
        "labels": [
            {"pairs": {INSTANCE_LABEL: facts.name}, "includeTemplates": True},
            plain_labels(facts, part),
        ],
        "patches": [
            {"path": "job.yaml"},
            *(
                patch
                for part in wanted_components(facts.config)
                for patch in part.loadtest_patches(facts)
            ),
        ],
    }


def prompts_on_claim(name: str) -> str:
    """Return the path of a run's prompts on `results_claim`."""
    return f"/results/{name}-prompts.jsonl"


def _job_patch(facts: Facts, loadtest: LoadTestJob, url: str, model: str) -> dict[str, Any]:
    """Return what one run changes in the Job of `manifests/loadtest`."""
    config, name = facts.config, facts.name
    deadline_s = loadtest.deadline_s
    job = yaml.safe_load((MANIFESTS / "loadtest" / "job.yaml").read_text(encoding="utf-8"))
    (base,) = job["spec"]["template"]["spec"]["containers"]
    told = {"--url": url, "--model": model}
    if config.loadtest_prompts == "claim":
        told["--prompts"] = prompts_on_claim(name)
    if config.results_claim is not None:
        # Each run of the Job has a folder of its own on the volume.
        told["--out"] = f"/results/{name}-$(JOB_UID)"
    args = [
        f"{flag}={told[flag]}" if (flag := arg.partition("=")[0]) in told else arg
        for arg in base["args"]
        if loadtest.sends_prompts or not arg.startswith("--prompts=")
    ]
    if config.load_pods > 1:
        args = [arg.replace("--out=", "--gather=") for arg in args]
        args.append(f"--shard=$(SHARD)/{config.load_pods}")
    container = {
        "name": base["name"],
        "image": config.loadtest_image,
        "args": args,
        "env": [key_from_secret(config), *_job_facts(config)],
    }
    if config.loadtest_resources != LoadTestResources():
        asked = config.loadtest_resources.model_dump()
        container["resources"] = {"requests": asked, "limits": asked}
    pod: dict[str, Any] = {"containers": [container]}
    spec: dict[str, Any] = {"activeDeadlineSeconds": deadline_s, "template": {"spec": pod}}
    if config.results_claim is not None:
        claim = {"claimName": config.results_claim}
        results = {"name": "results", "emptyDir": None, "persistentVolumeClaim": claim}
        pod["volumes"] = [results]
    if config.load_pods > 1:
        spec |= {
            "completionMode": "Indexed",
            "completions": config.load_pods,
            "parallelism": config.load_pods,
            "activeDeadlineSeconds": deadline_s + GATHER_S,
            "podFailurePolicy": {"rules": _ended_by_a_drain(job)},
        }
    return {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "metadata": {"name": job["metadata"]["name"]},
        "spec": spec,
    }


def _ended_by_a_drain(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the Job's rules on failures, in which a drained node ends the Job.

    Load pods begin together. One that starts again finds the others under way.
    """
    rules = [dict(rule) for rule in job["spec"]["podFailurePolicy"]["rules"]]
    for rule in rules:
        if "onPodConditions" in rule:
            rule["action"] = "FailJob"
    return rules


def _job_facts(config: DeployConfig) -> list[dict[str, Any]]:
    """Return the environment variables with a pod's facts about its Job, for its arguments."""
    paths = {}
    if config.results_claim is not None:
        paths["JOB_UID"] = "metadata.labels['batch.kubernetes.io/controller-uid']"
    if config.load_pods > 1:
        paths["SHARD"] = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in paths.items()
    ]


def _fitting(lines: Sequence[str]) -> list[str]:
    """Return the first lines that fit a ConfigMap, by their size in the annotation of `apply`."""
    taken: list[str] = []
    size_bytes = 0
    for line in lines:
        size_bytes += escaped_size(line + "\n")
        if size_bytes > PROMPTS_SIZE_BYTES:
            break
        taken.append(line + "\n")
    if not taken:
        raise ConfigError(
            f"load test: the first prompt has {size_bytes:,} bytes; a ConfigMap takes "
            f"{PROMPTS_SIZE_BYTES:,}",
            hint="Try: --set k8s.loadtest_prompts=claim --set k8s.results_claim=results",
        )
    return taken
