"""`tuneline deploy` of a reward model: its scores are compared with the trained model's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import tuneline_here
from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import DEPLOY, GATEWAY, SERVER
from tests.integration.k8s.cluster.model_server import ModelServer
from tests.integration.release.line import FinishedLine, reward_line
from tuneline.core.artifact import open_artifact
from tuneline.pipeline.run_config import load_run

Serve = Callable[..., ModelServer]


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> FinishedLine:
    image = "registry.example.com/tuneline-loadtest:1"
    line = reward_line(
        tmp_path_factory.mktemp("rewards"),
        k8s={**DEPLOY, "gateway": GATEWAY, "loadtest_image": image, "verify_model": True},
    )
    line.released()
    return line


@pytest.mark.parametrize(
    ("noise", "code", "words"),
    [
        (0.0, 0, "16 of 16 pairs in one order"),
        (5.0, 6, "of the server are not the trained model's"),
    ],
)
def test_a_reward_model_is_proven_by_its_scores(
    cluster: ApiServer, serve: Serve, rewards: FinishedLine, noise: float, code: int, words: str
) -> None:
    model = serve(open_artifact(rewards.artifact("model")).digest, noise=noise)
    run = rewards.run
    done = tuneline_here(
        "deploy", "apply", str(run.path), "--runs-dir", str(run.dir.parent), "--yes"
    )
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "/pooling" in model.paths and "/v1/chat/completions" not in model.paths
    # After a failed first version, the objects that it brought are gone.
    route = cluster.store.objects.get(("httproutes", SERVER))
    assert (route is None) == (code == 6)
    if route is not None:
        (rule,) = route["spec"]["rules"]
        assert [one["path"]["value"] for one in rule["matches"]] == ["/v1", "/pooling"]


def test_a_server_of_scores_scales_by_its_load_report(
    rewards: FinishedLine, tmp_path: Path
) -> None:
    run = rewards.run
    done = tuneline_here(
        "deploy", "render", str(run.path), "--runs-dir", str(run.dir.parent), "--out",
        str(tmp_path / "tree"), "--set", "k8s.monitoring_namespace=monitoring",
        "--set", "k8s.autoscaling={by: hpa, max_replicas: 3}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "tree").rglob("autoscaler.yaml")
    text = path.read_text()
    assert "maxReplicas: 3" in text and "of load report" in text


def test_the_job_of_a_load_test_asks_for_scores(rewards: FinishedLine, tmp_path: Path) -> None:
    run = rewards.run
    done = tuneline_here(
        "deploy", "render", str(run.path), "--runs-dir", str(run.dir.parent), "--out",
        str(tmp_path / "tree"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "tree" / "load-test"
    job_run = load_run(folder / "run.yaml")
    assert job_run.config.loadtest.workload.route == "pooling"
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    assert len(lines) == 160  # both answers of each of the 80 held-out pairs
    for chat in map(json.loads, lines):
        assert [message["role"] for message in chat] == ["user", "assistant"]
