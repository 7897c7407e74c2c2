"""The load test of a run as a Job: its kustomization, its run.yaml and its prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from k8s.config import DeployConfig
from k8s.kustomize import INSTANCE_LABEL, ROOM, common, key_from_secret, short, write_yaml
from k8s.objects import DIGEST_LABEL
from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger

# `kubectl apply` keeps a copy of an object in one annotation of at most 256 KiB.
PROMPTS_SIZE_BYTES = 128 * 1024


def write_loadtest(
    config: DeployConfig,
    tree: Path,
    *,
    name: str,
    model_digest: str,
    url: str,
    model: str,
    run_config: Mapping[str, Any],
    prompts: Sequence[Sequence[Mapping[str, str]]],
    deadline_s: int,
) -> None:
    """Add `load-test/` to a rendered tree.

    Args:
        url: The server's Service, up to and with `/v1`.
        model: The name to ask for; the one with the digest binds the report to the artifact.
        deadline_s: Seconds after which the Job is ended: more than the load test can take.

    Raises:
        ConfigError: Not even one prompt fits a ConfigMap.
    """
    shutil.copytree(ROOM / "loadtest", tree / "k8s" / "loadtest")
    directory = tree / "load-test"
    directory.mkdir()
    kustomization = {
        **common(config, name, model_digest),
        "resources": ["../k8s/loadtest"],
        "configMapGenerator": [
            {"name": "load-test", "behavior": "replace", "files": ["run.yaml", "prompts.jsonl"]}
        ],
        "labels": [
            {
                "pairs": {INSTANCE_LABEL: name, DIGEST_LABEL: short(model_digest)},
                "includeTemplates": True,
            }
        ],
        "patches": [{"path": "job.yaml"}],
    }
    write_yaml(directory / "kustomization.yaml", kustomization)
    job = yaml.safe_load((ROOM / "loadtest" / "job.yaml").read_text(encoding="utf-8"))
    (base,) = job["spec"]["template"]["spec"]["containers"]
    told = {"--url": url, "--model": model}
    container = {
        "name": base["name"],
        "image": config.loadtest_image,
        "args": [
            f"{flag}={told[flag]}" if (flag := arg.partition("=")[0]) in told else arg
            for arg in base["args"]
        ],
        "env": [key_from_secret(config)],
    }
    patch = {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "metadata": {"name": job["metadata"]["name"]},
        "spec": {
            "activeDeadlineSeconds": deadline_s,
            "template": {"spec": {"containers": [container]}},
        },
    }
    write_yaml(directory / "job.yaml", patch)
    write_yaml(directory / "run.yaml", run_config)
    lines = _fitting([json.dumps(list(prompt), ensure_ascii=False) for prompt in prompts])
    if len(lines) < len(prompts):
        logger.info(
            "load test: %d of %d prompts fit a ConfigMap and are taken", len(lines), len(prompts)
        )
    (directory / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")


def _fitting(lines: Sequence[str]) -> list[str]:
    taken: list[str] = []
    size_bytes = 0
    for line in lines:
        size_bytes += len(line.encode()) + 1
        if size_bytes > PROMPTS_SIZE_BYTES:
            break
        taken.append(line + "\n")
    if not taken:
        raise ConfigError(
            f"load test: the first prompt has {size_bytes:,} bytes; a ConfigMap takes "
            f"{PROMPTS_SIZE_BYTES:,}"
        )
    return taken
