"""`deploy canary` with `k8s.judge`: a Job in the cluster decides each step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from k8s.rules.objects import flags
from tests.commands import tuneline_here
from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import GATEWAY, SERVER, Released, weights
from tests.integration.k8s.cluster.model_server import KEY, ModelServer
from tuneline.core.artifact import open_artifact
from tuneline.pipeline.deployment import render_released

Serve = Callable[..., ModelServer]
JOB = "next-judge"


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A second run that a Job judges."""
    own = {
        "gateway": {**GATEWAY, "route": False},
        "image": "registry.example.com/tuneline-server:3",
        "loadtest_image": "registry.example.com/tuneline-loadtest:1",
        "results_claim": "results",
        "judge": {"stable": "support-tickets"},
    }
    serving = {"aliases": ["support-tickets"]}
    return Released(tmp_path_factory.mktemp("judged"), 3.0, own, name="next", serving=serving)


@pytest.fixture
def verdicts(cluster: ApiServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The message of each Job's condition in the order of their applies, empty if it completes."""
    monkeypatch.setattr("k8s.cluster.judge.POLL_S", 0.05)
    found: list[str] = []
    original = cluster.store.apply

    def apply(resource: str, name: str, *args: Any, **options: Any) -> Any:
        item = original(resource, name, *args, **options)
        if resource == "jobs" and not options["dry_run"]:
            words = found.pop(0)
            condition = {"type": "Failed" if words else "Complete", "status": "True"}
            item["status"] = {"conditions": [{**condition, "message": words}]}
        return item

    monkeypatch.setattr(cluster.store, "apply", apply)
    return found


def test_a_canary_goes_on_while_its_judge_completes(
    cluster: ApiServer,
    deployed: Released,
    judged: Released,
    serve: Serve,
    verdicts: list[str],
) -> None:
    serve(judged.digest, pods="next-", name="next")
    verdicts += ["", ""]
    done = judged.deploy("canary", "--weight", "5", "--hold", "0", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["held"] == [1, 5]
    assert verdicts == []
    # A Job's pods cannot change: each step has a Job of its own, with its inputs next to it.
    assert cluster.store.applied.count(f"Job/{JOB}") == 2
    changes = [line for line in cluster.requests if line.endswith(f"/jobs/{JOB}")]
    changes = [verb for verb in (line.split()[0] for line in changes) if verb != "get"]
    assert changes[-2:] == ["delete", "patch"]
    assert sorted(cluster.store.find("configmaps", JOB)["data"]) == ["prompts.jsonl", "run.yaml"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Container compare for pod tuneline/x failed with exit code 7 matching FailJob rule", 7),
        ("Job was active longer than specified deadline", 5),
    ],
)
def test_a_canary_whose_judge_fails_loses_its_share(
    cluster: ApiServer,
    deployed: Released,
    judged: Released,
    serve: Serve,
    verdicts: list[str],
    words: str,
    code: int,
) -> None:
    serve(judged.digest, pods="next-", name="next")
    verdicts += ["", words]
    done = judged.deploy("canary", "--weight", "50", "--hold", "0", "--yes")
    assert done.returncode == code, done.stderr
    assert f"Job/{JOB} failed: {words}" in done.stderr
    assert "The canary's weight is 0 again (weight 1 had held)" in done.stderr
    assert weights(cluster) == {SERVER: 100}


@pytest.mark.parametrize(("noise", "code"), [(0.0, 0), (0.7, 6)])
def test_the_judges_own_command_proves_the_canary(
    judged: Released, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    noise: float, code: int,
) -> None:  # fmt: skip
    model = serve(judged.digest, pods="next-", name="next", noise=noise)
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    manifests = render_released(judged.line.run)
    (job,) = (item for item in manifests.judge if item["kind"] == "Job")
    (prove,) = job["spec"]["template"]["spec"]["initContainers"]
    args = flags(prove["args"])
    assert args["--model"] == [f"next@{judged.digest.removeprefix('sha256:')[:12]}"]
    # The user copies the reference to the claim.
    places = {
        "/results/next-reference": str(judged.line.artifact("reference")),
        "http://next-model-server:8000": f"http://127.0.0.1:{model.port}",
        "/results/next-$(JOB_UID)": str(tmp_path / "next"),
    }
    words = [*prove["command"], *prove["args"]]
    for there, here in places.items():
        words = [word.replace(there, here) for word in words]
    done = tuneline_here(*words[1:])
    assert done.returncode == code, done.stderr
    assert open_artifact(tmp_path / "next-parity").kind == "parity"


def test_the_judges_own_command_compares_two_servers(
    judged: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = render_released(judged.line.run)
    (job,) = (item for item in manifests.judge if item["kind"] == "Job")
    (compare,) = job["spec"]["template"]["spec"]["containers"]
    (inputs,) = (item["data"] for item in manifests.judge if item["kind"] == "ConfigMap")
    for name, text in inputs.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    places = {
        "/config/": f"{tmp_path}/",
        "http://support-tickets-model-server:8000": "http://127.0.0.1:9",
        "http://next-model-server:8000": "http://127.0.0.1:9",
        "/results/next-$(JOB_UID)": str(tmp_path / "next"),
    }
    words = [*compare["command"], *compare["args"]]
    for there, here in places.items():
        words = [word.replace(there, here) for word in words]
    done = tuneline_here(*words[1:])
    # Every option and every input is taken; port 9 has no server.
    assert done.returncode == 5, done.stderr
    assert "127.0.0.1:9" in done.stderr
