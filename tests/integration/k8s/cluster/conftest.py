"""A cluster, two released versions of one run, and the server behind each port-forward."""

from __future__ import annotations

import base64
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from k8s import Manifests
from k8s.cluster import rollout
from tests.commands import tuneline_here
from tests.integration.k8s.cluster.api_server import ApiServer, api_server, emptied
from tests.integration.k8s.cluster.model_server import KEY, ModelServer, model_server
from tests.integration.k8s.cluster.objects import Store
from tests.integration.release.line import Answers, FinishedLine, write_line
from tuneline.core.artifact import open_artifact
from tuneline.pipeline import deployment
from tuneline.pipeline.deployment import render_released
from tuneline.pipeline.run_config import Run

SERVER = "support-tickets-model-server"
DEPLOY = {
    "overlay": "cpu",
    "image": "registry.example.com/tuneline-server:1",
    "model_claim": "models",
}
GATEWAY = {"name": "public", "namespace": "gateways"}


class Released:
    """A released run that can be deployed."""

    def __init__(self, folder: Path, weight: float, k8s: dict[str, Any], **config: Any) -> None:
        values = {**config, "k8s": {**DEPLOY, **k8s}}
        self.line: FinishedLine = write_line(folder, Answers(weight=weight), values)
        self.release = open_artifact(self.line.released()).digest
        self.digest = open_artifact(self.line.artifact("model")).digest

    def deploy(self, verb: str, *options: str) -> CompletedProcess[str]:
        """Run `tuneline deploy VERB` on the run."""
        run = self.line.run
        words = ("deploy", verb, str(run.path), "--runs-dir", str(run.dir.parent), *options)
        return tuneline_here(*words)


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Released, Released]:
    """Two versions of the run `support-tickets`: the second has another model, image and size."""
    root = tmp_path_factory.mktemp("versions")
    gateway = {"gateway": GATEWAY}
    second = {"image": "registry.example.com/tuneline-server:2", "replicas": 2}
    return (
        Released(root / "first", 1.0, gateway),
        Released(root / "second", 2.0, second),
    )


@pytest.fixture(scope="session")
def first(versions: tuple[Released, Released]) -> Released:
    return versions[0]


@pytest.fixture(scope="session")
def second(versions: tuple[Released, Released]) -> Released:
    return versions[1]


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A second run with a model of its own, which names the gateway of the first."""
    folder = tmp_path_factory.mktemp("canary")
    image = "registry.example.com/tuneline-server:3"
    serving = {"aliases": ["support-tickets"]}
    own = {"gateway": GATEWAY, "image": image}
    return Released(folder, 3.0, own, name="next", serving=serving)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kubectl's memory of the server's kinds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def rendered() -> dict[str, Manifests]:
    """The manifests of each configuration, which are rendered once."""
    return {}


@pytest.fixture(autouse=True)
def _fast(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path, rendered: dict[str, Manifests]
) -> None:
    def remembered(run: Run, release_dir: Path | None = None) -> Manifests:
        key = f"{run.path} {release_dir} {run.config.model_dump_json()}"
        if key not in rendered:
            rendered[key] = render_released(run, release_dir)
        return copy.deepcopy(rendered[key])

    monkeypatch.setattr(deployment, "render_released", remembered)
    monkeypatch.setattr(rollout, "POLL_S", 0.2)
    monkeypatch.setattr("k8s.cluster.canary.PAUSE_S", 0.2)
    monkeypatch.setenv("KUBECACHEDIR", str(cache))
    # The pinned kubectl, whatever else is installed. Short processes need no garbage collection.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("GOGC", "off")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture(scope="session")
def running_server() -> Iterator[ApiServer]:
    """One API server for all tests, so that kubectl keeps what it learnt about its kinds."""
    with api_server() as api:
        yield api


@pytest.fixture
def cluster(
    running_server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ApiServer]:
    """An empty cluster with the Secret of the API key, and a kubeconfig that names it."""
    with emptied(running_server) as api:
        config = tmp_path / "kubeconfig"
        api.write_kubeconfig(config)
        monkeypatch.setenv("KUBECONFIG", str(config))
        metadata = {"name": "tuneline-api-key", "namespace": "tuneline"}
        api.store.objects["secrets", "tuneline-api-key"] = {
            "apiVersion": "v1", "kind": "Secret", "metadata": metadata,
            "data": {"api-key": base64.b64encode(KEY.encode()).decode()},
        }  # fmt: skip
        yield api


@pytest.fixture
def serve(cluster: ApiServer) -> Iterator[Callable[..., ModelServer]]:
    """Put a server behind the pods: `serve(digest, noise=0.0, pods="text in the pod's name")`."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def started(digest: str, *, pods: str = "", **options: Any) -> ModelServer:
            model = stack.enter_context(model_server(digest, **options))
            if pods:
                cluster.backends[pods] = model.port
            else:
                cluster.backend_port = model.port
            return model

        yield started


@pytest.fixture(scope="session")
def applied() -> list[Store]:
    """The cluster after the first version was applied, which is done once."""
    return []


@pytest.fixture
def deployed(
    cluster: ApiServer, first: Released, serve: Callable[..., ModelServer], applied: list[Store]
) -> Released:
    """The first version, deployed and proven."""
    serve(first.digest)
    if not applied:
        done = first.deploy("apply", "--yes")
        assert done.returncode == 0, done.stderr
        applied.append(copy.deepcopy(cluster.store))
    cluster.store = copy.deepcopy(applied[0])
    cluster.store.applied.clear()
    cluster.requests.clear()
    return first


@pytest.fixture(scope="session")
def shared() -> list[Store]:
    """The cluster after a canary got its first share, which is done once."""
    return []


@pytest.fixture
def with_share(
    cluster: ApiServer, deployed: Released, canary: Released, serve: Callable[..., ModelServer],
    shared: list[Store],
) -> Released:  # fmt: skip
    """The canary, proven, with 1 percent of the first version's requests."""
    serve(canary.digest, pods="next-", name="next")
    if not shared:
        done = canary.deploy("canary", "--weight", "1", "--hold", "0", "--yes")
        assert done.returncode == 0, done.stderr
        shared.append(copy.deepcopy(cluster.store))
    cluster.store = copy.deepcopy(shared[0])
    cluster.requests.clear()
    return canary


def running(cluster: ApiServer) -> dict[str, Any]:
    """Return the annotations, the image and the size of the Deployment in the cluster."""
    item = cluster.store.find("deployments", SERVER)
    annotations = item["metadata"]["annotations"]
    return {
        "release": annotations["tuneline/release"],
        "model": annotations["tuneline/model-digest"],
        "image": item["spec"]["template"]["spec"]["containers"][0]["image"],
        "replicas": item["spec"]["replicas"],
        "ready": item["status"]["availableReplicas"],
    }


def history(cluster: ApiServer, name: str = SERVER) -> Any:
    """Return the record in the cluster."""
    data = cluster.store.find("configmaps", f"{name}-revisions")["data"]
    return json.loads(data["history.json"])


def kinds(cluster: ApiServer) -> set[str]:
    """Return the kinds of all objects in the cluster."""
    return {item["kind"] for item in cluster.store.objects.values()}


def weights(cluster: ApiServer) -> dict[str, int]:
    """Return the shares of the stable run's route."""
    (rule,) = cluster.store.find("httproutes", SERVER)["spec"]["rules"]
    return {one["name"]: one["weight"] for one in rule["backendRefs"]}
