"""`tuneline deploy render`: a kustomize tree for one run, complete in itself.

    OUT/kustomization.yaml             kubectl apply -k OUT
    OUT/server.yaml                    image, arguments, environment, resources of this run
    OUT/load-test/kustomization.yaml   kubectl apply -k OUT/load-test
    OUT/load-test/job.yaml, run.yaml, prompts.jsonl
    OUT/k8s/...                        copies of the base, the overlay and the components used
    OUT/render.json                    what was rendered and the digest of every file

The same inputs give the same bytes. Before a tree takes its name, what kubectl makes of it is held
against the rules of `validate.py`.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from k8s.config import DeployConfig
from k8s.render.kustomize import (
    INSTANCE_LABEL,
    ROOM,
    build,
    common,
    key_from_secret,
    write_yaml,
)
from k8s.render.loadtest_job import write_loadtest
from k8s.rules.objects import DIGEST_LABEL, Object, flags
from k8s.rules.rules import problems
from k8s.rules.server import PATIENCE
from tuneline import __version__
from tuneline.core.artifact import disk_full, file_sha256
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.progress import logger
from tuneline.core.secrets import is_secret_name
from tuneline.core.vllm_limits import EXIT_MARGIN_S

# What the base fixes about the container; `served_args` are made for it.
MODEL_DIR = "/model"
HOST = "0.0.0.0"  # noqa: S104 (the pod's own network; a NetworkPolicy and a key guard it)
PORT = 8000

MARKER = "render.json"
# The startup probe waits this much longer than vLLM itself, whose clock starts after its imports.
STARTUP_MARGIN_S = 60
# For scheduling a pod and pulling its image.
SCHEDULING_S = 300


def render(
    config: DeployConfig,
    *,
    name: str,
    model_digest: str,
    served_args: Sequence[str],
    served_env: Mapping[str, str],
    out: Path,
    run_config: Mapping[str, Any] | None = None,
    prompts: Sequence[Sequence[Mapping[str, str]]] = (),
    loadtest_deadline_s: int = 3600,
) -> Path:
    """Write the manifests of one run to `out` and return it.

    Args:
        config: The section `k8s` of run.yaml.
        name: The run's name; every object's name begins with it.
        model_digest: `sha256:...` of the artifact that is served.
        served_args: All arguments of `vllm serve`: the model at `MODEL_DIR`, `--host` `HOST`,
            `--port` `PORT`, the names `[name, name@digest12]`, and what the run was proven with.
        served_env: Environment variables of the server; no secrets.
        out: A directory that does not exist, or an earlier output of this function.
        run_config: The whole resolved run.yaml, for the load test.
        prompts: Chat messages that the load test sends. As many as fit a ConfigMap are taken.
        loadtest_deadline_s: After so many seconds the load test's Job is ended.

    Raises:
        ConfigError: Values are missing or do not fit together, or the manifests break a rule.
        ArtifactError: `out` exists and was not rendered, or was changed since.
        DiskFullError: The file system ran out of space.
    """
    _check_inputs(config, name, served_args, served_env)
    _check_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            tree = Path(scratch) / "new"
            tree.mkdir()
            _write_server(config, name, model_digest, served_args, served_env, tree)
            targets = [tree]
            if config.loadtest_image is not None and run_config is not None and prompts:
                write_loadtest(
                    config,
                    tree,
                    name=name,
                    model_digest=model_digest,
                    url=f"http://{name}-model-server:{PORT}/v1",
                    model=flags(served_args)["--served-model-name"][-1],
                    run_config=run_config,
                    prompts=prompts,
                    deadline_s=loadtest_deadline_s,
                )
                targets.append(tree / "load-test")
            _check_rendered(targets)
            _write_marker(tree, name, model_digest)
            if out.exists():
                out.rename(Path(scratch) / "old")
            tree.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(out) from error
        raise
    return out


def _check_inputs(
    config: DeployConfig, name: str, served_args: Sequence[str], served_env: Mapping[str, str]
) -> None:
    found = []
    if config.image is None:
        found.append(
            "k8s.image: missing; expected the image built from "
            f"k8s/images/Dockerfile.{config.overlay}"
        )
    if config.model_claim is None and config.model_image is None:
        found.append(
            "k8s.model_claim, k8s.model_image: one is needed: the volume claim or the OCI image "
            "that holds the model"
        )
    if not name[:1].isalpha():
        found.append(f"name: {name!r} begins with a digit, which no Kubernetes Service may")
    if "--enable-lora" in flags(served_args):
        found.append("serving.mode: adapter; the manifests run the merged model")
    found += [
        f"serving: {key} is a secret; it comes from the Secret {config.secret_name}"
        for key in served_env
        if is_secret_name(key)
    ]
    if found:
        raise ConfigError(
            found,
            hint="Try: --set k8s.image=registry.example.com/tuneline-server-cpu:v0.32.0 "
            "--set k8s.model_claim=models",
        )


def _check_replaceable(out: Path) -> None:
    """Replace what was rendered here and nothing that somebody wrote or changed."""
    if not out.exists():
        return
    try:
        known = set(json.loads((out / MARKER).read_text(encoding="utf-8"))["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(
            f"{out}: exists already and was not written by `tuneline deploy render`",
            hint="Choose another --out.",
        ) from None
    changed = sorted(known ^ set(_digests(out).items()))
    if changed:
        raise ArtifactError(
            f"{out / changed[0][0]}: was changed, added or removed since it was rendered",
            hint="Choose another --out. Changes of your own belong in a kustomization of your own "
            f"that lists {out.name} under `resources`.",
        )


def _write_server(
    config: DeployConfig,
    name: str,
    model_digest: str,
    served_args: Sequence[str],
    served_env: Mapping[str, str],
    tree: Path,
) -> None:
    copies = ["base", f"overlays/{config.overlay}"]
    components = []
    if config.model_image is not None:
        components.append("components/model-image")
    if config.monitoring_namespace is not None:
        components.append("components/service-monitor")
    for part in [*copies, *components]:
        shutil.copytree(ROOM / part, tree / "k8s" / part)
    patches: list[dict[str, Any]] = [{"path": "server.yaml"}]
    if config.monitoring_namespace is not None:
        patches.append(_monitoring_patch(config.monitoring_namespace))
    kustomization: dict[str, Any] = {
        **common(config, name, model_digest),
        "resources": [f"k8s/overlays/{config.overlay}"],
        "labels": [
            {
                "pairs": {INSTANCE_LABEL: name},
                "includeSelectors": True,
                "fields": [
                    {"path": "spec/selector/matchLabels", "kind": "ServiceMonitor", "create": True}
                ],
            },
            # Not in selectors: they cannot change, and every model has another digest.
            {"pairs": {DIGEST_LABEL: short_digest(model_digest)}, "includeTemplates": True},
        ],
        "patches": patches,
    }
    if components:
        kustomization["components"] = [f"k8s/{part}" for part in components]
    write_yaml(tree / "kustomization.yaml", kustomization)
    deployment = yaml.safe_load((ROOM / "base" / "deployment.yaml").read_text(encoding="utf-8"))
    patch = _server_patch(config, name, model_digest, served_args, served_env, deployment)
    write_yaml(tree / "server.yaml", patch)


def _server_patch(
    config: DeployConfig,
    name: str,
    model_digest: str,
    served_args: Sequence[str],
    served_env: Mapping[str, str],
    deployment: Mapping[str, Any],
) -> dict[str, Any]:
    """A strategic-merge patch: lists of named things merge by name, `args` are replaced."""
    (base,) = deployment["spec"]["template"]["spec"]["containers"]
    startup_s = int(served_env.get(PATIENCE, _value(base, PATIENCE))) + STARTUP_MARGIN_S
    period_s = base["startupProbe"]["periodSeconds"]
    drain_s = int((flags(served_args).get("--shutdown-timeout") or ["0"])[-1])
    grace_s = base["lifecycle"]["preStop"]["sleep"]["seconds"] + drain_s + EXIT_MARGIN_S
    container: dict[str, Any] = {
        "name": base["name"],
        "image": config.image,
        "args": list(served_args),
        "env": [
            *({"name": key, "value": served_env[key]} for key in sorted(served_env)),
            key_from_secret(config),
        ],
        "startupProbe": {"failureThreshold": -(-startup_s // period_s)},
    }
    if resources := _resources(config):
        container["resources"] = resources
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": grace_s,
        "containers": [container],
    }
    if config.model_claim is not None:
        folder = config.model_path or f"{name}-{short_digest(model_digest)}"
        container["volumeMounts"] = [{"mountPath": MODEL_DIR, "name": "model", "subPath": folder}]
        claim = {"claimName": config.model_claim}
        pod["volumes"] = [{"name": "model", "persistentVolumeClaim": claim}]
    else:
        pod["volumes"] = [{"name": "model", "image": {"reference": config.model_image}}]
    return {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "metadata": {"name": deployment["metadata"]["name"]},
        "spec": {
            "replicas": config.replicas,
            "progressDeadlineSeconds": startup_s + grace_s + SCHEDULING_S,
            "template": {"spec": pod},
        },
    }


def _value(container: Mapping[str, Any], name: str) -> str:
    (entry,) = (entry for entry in container["env"] if entry["name"] == name)
    return str(entry["value"])


def _resources(config: DeployConfig) -> dict[str, Any]:
    wanted = config.resources
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if wanted.cpu is not None:
        requests["cpu"] = wanted.cpu
        if config.overlay == "cpu":
            limits["cpu"] = wanted.cpu
    if wanted.memory is not None:
        requests["memory"] = limits["memory"] = wanted.memory
    if wanted.gpus is not None:
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(wanted.gpus)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _monitoring_patch(monitoring_namespace: str) -> dict[str, Any]:
    path = "/spec/ingress/1/from/0/namespaceSelector/matchLabels/kubernetes.io~1metadata.name"
    operation = [{"op": "replace", "path": path, "value": monitoring_namespace}]
    return {
        "target": {"kind": "NetworkPolicy", "name": "model-server"},
        "patch": yaml.safe_dump(operation, sort_keys=False),
    }


def _check_rendered(directories: Sequence[Path]) -> None:
    objects: list[Object] = []
    for directory in directories:
        built = build(directory)
        if built is None:
            logger.warning("the manifests were not checked: neither kubectl nor kustomize is here")
            return
        objects += built
    if found := problems(objects):
        raise ConfigError([f"rendered manifests: {problem}" for problem in found])


def _write_marker(tree: Path, name: str, model_digest: str) -> None:
    marker = {
        "tuneline": __version__,
        "name": name,
        "model_digest": model_digest,
        "files": _digests(tree),
    }
    (tree / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _digests(tree: Path) -> dict[str, str]:
    return {
        file.relative_to(tree).as_posix(): file_sha256(file)
        for file in sorted(tree.rglob("*"))
        if file.is_file() and file != tree / MARKER
    }
