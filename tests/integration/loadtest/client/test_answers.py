"""Answers under load against a reference, repeats, and clients that leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import report_text, run_loadtest
from loadtest.calibration.start import known_server
from loadtest.client.prepare import make_plan
from loadtest.client.processes import run_workers
from loadtest.client.records import CANCELLED
from loadtest.config import LoadTestConfig
from loadtest.measure import judged
from tests.integration.loadtest.client.talk_server import TalkServer, talk_server, word_of
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.reference import REFERENCE_FILE, Continuation, write_continuations
from tuneline.core.tolerances import Tolerances

pytestmark = pytest.mark.usefixtures("shared_host")

PROMPTS = [[{"role": "user", "content": f"question {number} plain"}] for number in range(8)]
EXACT = Tolerances(min_token_agreement=1.0, max_logprob_difference=0.01)


def reference(path: Path, num_tokens: int = 4) -> Artifact:
    """A reference whose answers are the talk server's."""
    right = [
        Continuation(
            messages=[{"role": "user", "content": f"reference {number} plain"}],
            prompt_token_ids=[1, 2, 3],
            token_ids=[100 + place for place in range(num_tokens)],
            logprobs=[-0.5 - place / 10 for place in range(num_tokens)],
            top_logprobs=[{100 + place: -0.5 - place / 10, 7: -3.0} for place in range(num_tokens)],
            text="".join(word_of(1, place) for place in range(num_tokens)),
            finish_reason="length",
        )
        for number in range(3)
    ]
    settings = {"max_new_tokens": num_tokens, "top_logprobs": 2}
    with new_artifact(path, "reference", config=settings) as draft:
        write_continuations(draft.dir / REFERENCE_FILE, right)
    return open_artifact(path)


def run(
    server: TalkServer, tmp_path: Path, answers: dict[str, Any] | None = None, **options: Any
) -> tuple[Artifact, dict[str, Any]]:
    chosen = LoadTestConfig.model_validate(
        {
            "scenarios": [{"name": "x", "concurrency": 4, "num_requests": 60}],
            "num_warmup_requests": 4, "calibrate": False, "max_client_lag_s": 1.0,
            "timeout_s": 5.0, "max_tokens": 4,
            "answers": {"share": 0.25, "tolerances": EXACT, **(answers or {})}, **options,
        }
    )  # fmt: skip
    artifact = run_loadtest(
        chosen, server.endpoint, tmp_path / "r", prompts=PROMPTS,
        reference=reference(tmp_path / "reference"),
    )  # fmt: skip
    (scenario,) = json.loads(report_text(artifact, "json"))["scenarios"]
    return artifact, scenario


@pytest.mark.parametrize("sessions", [False, True])
def test_a_share_of_the_requests_asks_the_reference(tmp_path: Path, sessions: bool) -> None:
    workload = {"sessions": {"think_s": {"mean": 0.0}}} if sessions else {}
    with talk_server() as server:
        artifact, scenario = run(server, tmp_path, workload=workload)
        asked = [one.messages[0]["content"] for one in server.asked]
    assert scenario["verdict"] == "PASS", scenario["problems"]
    found = scenario["answers"]
    # The first four are warm-up, whose answers are not compared.
    checks = [one for one in asked[4:] if one.startswith("reference")]
    assert 14 <= len(checks) <= 18 and len(asked) == 64
    assert found["num_compared"] == found["num_equal"] == found["num_asked"] == len(checks)
    assert (found["compared"], found["token_agreement"]) == ("token ids", 1.0)
    assert found["max_logprob_difference"] < 1e-9 and found["length_drift"] == 0
    # Every part of the run has its share.
    assert all(any(one.startswith("reference") for one in asked[n : n + 12]) for n in (0, 24, 48))
    assert f"{len(checks)} of {len(checks)} answers" in report_text(artifact, "table")
    assert "tuneline_loadtest_answers_equal" in report_text(artifact, "prometheus")


def test_an_answer_that_changes_under_load_fails_with_its_first_divergence(tmp_path: Path) -> None:
    with talk_server(wrong_after=30) as server:
        artifact, scenario = run(server, tmp_path)
    assert scenario["verdict"] == "FAIL"
    found = scenario["answers"]
    assert 0 < found["num_equal"] < found["num_compared"]
    first = found["first_divergences"][0]
    assert first["position"] == 2 and first["request"] >= 25
    assert any(one.startswith("answers under load: ") for one in scenario["problems"])
    for form in ("table", "html"):
        assert "the reference has" in report_text(artifact, form)


@pytest.mark.parametrize(("error", "verdict"), [(0.002, "PASS"), (0.05, "FAIL")])
def test_log_probabilities_are_compared_with_the_tolerance(
    error: float, verdict: str, tmp_path: Path
) -> None:
    with talk_server(logprob_error=error) as server:
        _, scenario = run(server, tmp_path)
    assert scenario["verdict"] == verdict, scenario["problems"]
    assert scenario["answers"]["max_logprob_difference"] == pytest.approx(error)


@pytest.mark.parametrize("wrong_after", [None, 30])
def test_a_server_without_token_ids_is_compared_by_its_texts(
    wrong_after: int | None, tmp_path: Path
) -> None:
    with talk_server(has_ids=False, wrong_after=wrong_after) as server:
        _, scenario = run(server, tmp_path)
    found = scenario["answers"]
    assert found["compared"] == "text" and found["max_logprob_difference"] is None
    assert scenario["verdict"] == ("PASS" if wrong_after is None else "FAIL")
    if wrong_after is not None:
        assert found["first_divergences"][0]["position"] == 10


def test_shorter_answers_fail_by_their_length(tmp_path: Path) -> None:
    loose = Tolerances(
        min_greedy_agreement=None, min_token_agreement=None, max_logprob_difference=None,
        mean_logprob_difference=None,
    )  # fmt: skip
    with talk_server(num_tokens=3) as server:
        _, scenario = run(server, tmp_path, {"tolerances": loose})
    assert scenario["verdict"] == "FAIL"
    assert any("-25.0% tokens" in one for one in scenario["problems"])


def test_a_missing_reference_is_an_error(tmp_path: Path) -> None:
    chosen = LoadTestConfig.model_validate({"answers": {}})
    with talk_server() as server, pytest.raises(ConfigError, match="reference is missing"):
        run_loadtest(chosen, server.endpoint, tmp_path / "r", prompts=PROMPTS)
    with new_artifact(tmp_path / "d", "dataset", config={}) as draft:
        (draft.dir / "x").write_text("x")
    chosen = LoadTestConfig.model_validate({"answers": {"reference": str(tmp_path / "d")}})
    with talk_server() as server, pytest.raises(ArtifactError, match="kind 'dataset'"):
        run_loadtest(chosen, server.endpoint, tmp_path / "r", prompts=PROMPTS)


@pytest.mark.parametrize(
    ("declared", "slow_s", "verdict"),
    [(0.5, 0.0, "PASS"), (0.5, 0.05, "INVALID"), (None, 0.05, "PASS")],
)
def test_repeats_must_not_be_faster_than_declared(
    declared: float | None, slow_s: float, verdict: str, tmp_path: Path
) -> None:
    with talk_server(first_ttft_s=slow_s, gap_s=0.005) as server:
        _, scenario = run(
            server, tmp_path, workload={"min_repeat_ttft_share": declared}, num_warmup_requests=0
        )
    assert scenario["verdict"] == verdict, scenario["problems"]
    said = scenario["problems"] if declared else scenario["warnings"]
    assert any("a cache answers" in one for one in said) == bool(slow_s)
    assert scenario["repeats"]["num_repeats"] > 40


@pytest.mark.parametrize("scenario", [{"rate_rps": 60.0}, {"concurrency": 4}])
@pytest.mark.parametrize("leaves", [{"after_tokens": 2}, {"after_s": 0.03}])
def test_clients_that_leave_are_counted_and_poison_nothing(
    scenario: dict[str, Any], leaves: dict[str, Any], tmp_path: Path
) -> None:
    chosen = LoadTestConfig.model_validate(
        {
            "scenarios": [{"name": "x", **scenario, "num_requests": 80}],
            "num_warmup_requests": 0, "calibrate": False, "max_client_lag_s": 1.0,
            "timeout_s": 5.0, "max_tokens": 30, "cancellations": {"share": 0.3, **leaves},
        }
    )  # fmt: skip
    with talk_server(num_tokens=30, gap_s=0.004) as server:
        artifact = run_loadtest(chosen, server.endpoint, tmp_path / "r", prompts=PROMPTS)
        gone = [one for one in server.asked if one.left]
    (found,) = json.loads(report_text(artifact, "json"))["scenarios"]
    requests, left = found["requests"], found["cancellations"]
    assert requests["cancelled"] == left["num_left"] == left["num_aborted"] == len(gone) > 10
    assert requests["succeeded"] == 80 - requests["cancelled"]
    assert (requests["failed"], requests["unfinished"], found["errors"]) == (0, 0, {})
    assert found["verdict"] == "PASS", found["problems"]
    assert left["num_running_after"] == 0
    # The server notices within a few writes.
    assert all(one.num_sent < 20 for one in gone)
    assert left["num_tokens_after_leaving"] < 12 * len(gone)
    assert found["latency"]["ttft_s"]["n"] == requests["succeeded"]
    for form in ("table", "html"):
        assert f"{len(gone)} clients left" in report_text(artifact, form)
    assert 'state="cancelled"' in report_text(artifact, "prometheus")
    assert ",cancelled," in report_text(artifact, "csv")


def test_a_client_leaves_at_its_time_and_ends_its_session() -> None:
    chosen = LoadTestConfig.model_validate(
        {
            "scenarios": [{"name": "x", "concurrency": 3, "num_requests": 12}],
            "num_warmup_requests": 0, "calibrate": False, "max_client_lag_s": 1.0,
            "max_tokens": 64, "cancellations": {"share": 0.4, "after_s": 0.1},
            "workload": {"sessions": {"think_s": {"mean": 0.0}}},
        }
    )  # fmt: skip
    talk = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]  # fmt: skip
    with known_server("--ttft-s", "0.02", "--itl-s", "0.004", "--num-tokens", "64") as server:
        plan, workload = make_plan(chosen, chosen.scenarios[0], server.endpoint, [talk], seed=0)
        measured = run_workers(plan, None)
        result = judged(chosen, chosen.scenarios[0], plan, workload, measured)
    left = result.records.select(result.records.state == CANCELLED)
    assert len(left) >= 3
    stayed_s = left.end_s - left.intended_s
    assert stayed_s.min() >= 0.1
    assert np.median(stayed_s) < 0.15
    sessions = result.stats.sessions
    assert sessions is not None and sessions.cancelled == len(left)
    assert sessions.offered == 12 == sessions.succeeded + sessions.cancelled
