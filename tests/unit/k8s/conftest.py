"""Manifests as kubectl renders them: those of the repository, and those of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import k8s
from k8s.config import HOST, MODEL_DIR, PORT, DeployConfig
from k8s.render.kustomize import build, find_kubectl
from k8s.render.tree import render_manifests
from serving.command.arguments import served_names, server_args
from serving.command.environment import server_env
from serving.config import ServingConfig

Objects: TypeAlias = list[dict[str, Any]]

ROOM = Path(k8s.__file__).parent
DIGEST = "sha256:" + "0123456789abcdef" * 4
SERVER_IMAGE = "registry.example.com/tuneline-server:0.1.0"
LOADTEST_IMAGE = "registry.example.com:5000/tuneline-loadtest@sha256:" + "7" * 64
MODEL_IMAGE = "registry.example.com/models/support-tickets@sha256:" + "9" * 64
PROMPTS = [
    [{"role": "user", "content": f"Ticket {number}: die Rechnung, 청구서"}] for number in range(5)
]


@pytest.fixture(scope="session")
def kubectl() -> str:
    tool = find_kubectl()
    if tool is None:
        pytest.skip("kubectl is not installed; it renders the manifests under test")
    return tool


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
        **options: Any,
    ) -> Path:
        serving = serving or ServingConfig(max_model_len=1024)
        options.setdefault("image", SERVER_IMAGE)
        if "model_image" not in options:
            options.setdefault("model_claim", "models")
        facts = {"TUNELINE_ARTIFACT_NAME": name, "TUNELINE_ARTIFACT_DIGEST": DIGEST}
        args = server_args(
            serving,
            model=MODEL_DIR,
            adapter=None,
            served_names=served_names(name, DIGEST),
            host=HOST,
            port=PORT,
        )
        return render_manifests(
            DeployConfig(**options),
            name=name,
            model_digest=DIGEST,
            served_args=args if served_args is None else served_args,
            served_env=server_env(serving, facts) if served_env is None else served_env,
            out=out,
            run_config={"name": name, "data": {"path": "train.jsonl"}},
            prompts=prompts,
        )

    return rendered


@pytest.fixture(scope="session")
def objects_of(kubectl: str) -> Callable[..., Objects]:
    """Return the objects that `kubectl apply -k` would send for one or more directories."""

    def objects(*directories: Path) -> Objects:
        found: Objects = []
        for directory in directories:
            built = build(directory)
            assert built, directory
            found += [dict(item) for item in built]
        return found

    return objects


TREES = [
    "overlays/cpu",
    "overlays/gpu",
    "model-volume",
    "claim on a gpu",
    "image on a cpu",
    "load pods",
]


@pytest.fixture(scope="session")
def trees(
    objects_of: Callable[..., Objects], render_run: Render, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Objects]:
    """Every set of objects that may be applied together."""
    root = tmp_path_factory.mktemp("deploy")
    gpu = render_run(
        root / "gpu",
        overlay="gpu",
        loadtest_image=LOADTEST_IMAGE,
        monitoring_namespace="observability",
        image_pull_secrets=["registry"],
    )
    cpu = render_run(
        root / "cpu", overlay="cpu", loadtest_image=LOADTEST_IMAGE, model_image=MODEL_IMAGE
    )
    pods = render_run(
        root / "pods", loadtest_image=LOADTEST_IMAGE, load_pods=4, results_claim="results"
    )
    return {
        "load pods": objects_of(pods, pods / "load-test"),
        "overlays/cpu": objects_of(ROOM / "manifests/overlays/cpu", ROOM / "manifests/loadtest"),
        "overlays/gpu": objects_of(ROOM / "manifests/overlays/gpu", ROOM / "manifests/loadtest"),
        "model-volume": objects_of(ROOM / "manifests/model-volume"),
        "claim on a gpu": objects_of(gpu, gpu / "load-test"),
        "image on a cpu": objects_of(cpu, cpu / "load-test"),
    }


@pytest.fixture(params=TREES)
def manifests(request: pytest.FixtureRequest, trees: dict[str, Objects]) -> Objects:
    return copy.deepcopy(trees[request.param])


@pytest.fixture
def deployed(trees: dict[str, Objects]) -> Objects:
    """One run with everything: a server on a GPU, its ServiceMonitor and its load test."""
    return copy.deepcopy(trees["claim on a gpu"])
