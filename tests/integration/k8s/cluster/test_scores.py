"""`tuneline deploy` of a reward model: its scores are compared with the trained model's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.commands import tuneline_here
from tests.integration.k8s.cluster.api_server import ApiServer
from tests.integration.k8s.cluster.conftest import DEPLOY, GATEWAY, SERVER
from tests.integration.k8s.cluster.model_server import ModelServer
from tests.integration.release.line import FinishedLine, reward_line
from tuneline.core.artifact import open_artifact

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
    [(0.0, 0, "32 scores are the trained model's"), (5.0, 6, "the scores of the server differ")],
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
    # A load test sends prompts, which a model of scores does not answer.
    assert ("jobs", "support-tickets-load-test") not in cluster.store.objects
