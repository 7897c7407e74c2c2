"""`tuneline deploy render --training`: a kustomize tree for the training of one run.

    OUT/kustomization.yaml     kubectl apply -k OUT
    OUT/workload.yaml          the Job, JobSet or TrainJob
    OUT/config-map.yaml        the run's run.yaml
    OUT/service-account.yaml, network-policy.yaml
    OUT/render.json            what was rendered and the digest of every file

The same inputs give the same bytes, and the rules of `k8s/rules/` check the objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from k8s.config import DeployConfig
from k8s.render.facts import Document
from k8s.render.kustomize import dump_yaml, write_yaml
from k8s.render.output import check_rendered, new_tree
from k8s.render.training.facts import TrainingFacts
from k8s.render.training.job import FOLDER, read, training_job
from k8s.render.training.table import KINDS
from tuneline.core.errors import ConfigError

IMAGE = "registry.example.com/tuneline-training:v0.1.0"
FIRST_FREE_PORT, LAST_PORT = 1024, 65535


def render_training(
    config: DeployConfig, *, name: str, run_config: Mapping[str, Any], out: Path
) -> Path:
    """Write the manifests of a run's training to `out` and return it.

    Args:
        config: The section `k8s` of run.yaml, with `training`.
        name: The run's name; every object's name begins with it.
        run_config: The content of the run.yaml that the pods read; its paths are those in a pod.
        out: A directory that does not exist, or an earlier output of this function.

    Raises:
        ConfigError: The section has no `training`, or the manifests break a rule.
        ArtifactError: `out` exists and was not rendered, or was changed since.
        DiskFullError: The file system ran out of space.
    """
    if config.training is None:
        raise ConfigError(
            "k8s.training: missing; expected at least an image and a claim",
            hint=f"Try: --set k8s.training.image={IMAGE} --set k8s.training.work_claim=work",
        )
    facts = TrainingFacts(config, config.training, name)
    with new_tree(out, {"name": name, "training": config.training.kind}) as tree:
        files = {
            "workload.yaml": KINDS[config.training.kind](facts, training_job(facts)),
            "config-map.yaml": [_config_map(facts, run_config)],
            "service-account.yaml": [_named("service-account.yaml", facts)],
            "network-policy.yaml": [_network_policy(facts)],
        }
        for file, objects in files.items():
            text = "---\n".join(dump_yaml(item) for item in objects)
            (tree / file).write_text(text, encoding="utf-8")
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": list(files),
        }
        write_yaml(tree / "kustomization.yaml", kustomization)
        check_rendered([tree])
    return out


def _named(file: str, facts: TrainingFacts) -> Document:
    """Return an object of the manifests under the run's name."""
    return read(FOLDER / file) | {"metadata": facts.metadata()}


def _config_map(facts: TrainingFacts, run_config: Mapping[str, Any]) -> Document:
    return _named("config-map.yaml", facts) | {"data": {"run.yaml": dump_yaml(dict(run_config))}}


def _network_policy(facts: TrainingFacts) -> Document:
    """Return the policy of the pods; the pods of several hosts reach one another."""
    policy = _named("network-policy.yaml", facts)
    spec = policy["spec"]
    spec["podSelector"]["matchLabels"] = dict(facts.labels)
    outward, names = spec["egress"]
    ports = [{"protocol": "TCP", "port": port} for port in facts.training.ports]
    spec["egress"] = [*([outward | {"ports": ports}] if ports else []), names]
    if facts.training.hosts > 1:
        peers = [{"podSelector": {"matchLabels": dict(facts.labels)}}]
        # torch's store has one port; NCCL and Gloo take any free ones.
        free = [{"protocol": "TCP", "port": FIRST_FREE_PORT, "endPort": LAST_PORT}]
        spec["ingress"] = [{"from": peers, "ports": free}]
        spec["egress"].append({"to": peers, "ports": free})
    return policy
