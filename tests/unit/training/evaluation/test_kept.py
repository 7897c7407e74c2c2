"""Evaluations that were interrupted: what was answered is not asked again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.unit.training.evaluation.metrics.judge_server import judge, prefer_longer
from training.config import EvaluationConfig, JudgeConfig
from training.config.data import SourceConfig
from training.evaluation.evaluate import evaluate_endpoint, read_predictions
from training.evaluation.kept import kept_answers
from training.evaluation.report.report import report_evaluations
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError, ServerError

NUM_ROWS = 6
CONFIG = EvaluationConfig(batch_size=1, metrics=("exact_match",))


@pytest.fixture
def data(tmp_path: Path) -> SourceConfig:
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(NUM_ROWS)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path), columns={"prompt": "question", "completion": "answer"})


def test_an_evaluation_asks_an_endpoint_only_for_the_rest(
    data: SourceConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, kept = tmp_path / "out", tmp_path / ".out.answers"
    with judge(lambda *_: "3", failing=[5]) as (url, requests), caplog.at_level(logging.INFO):
        with pytest.raises(ServerError) as got:
            evaluate_endpoint(CONFIG, data, Endpoint(url, "m"), out)
        assert "the same command asks only for the rest" in str(got.value.hint)
        assert len(kept.read_text().splitlines()) == 4 and not out.exists()
        with kept.open("a") as file:
            file.write('["sha256:')  # a kill in the middle of a line
        made = evaluate_endpoint(CONFIG, data, Endpoint(url, "m"), out)
        assert len(requests) == NUM_ROWS + 1
        assert f"4 of {NUM_ROWS} answers are kept" in caplog.text
        assert not kept.exists()
        assert [p.answer for p in read_predictions(made)] == ["3"] * NUM_ROWS
        assert made.manifest.metrics["num_correct"] == 1
        asked = [request["messages"][0]["content"] for request in requests]
        assert asked[-2:] == ["4 + 1?", "5 + 1?"]


def test_an_answer_of_another_model_is_not_taken(data: SourceConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with judge(lambda *_: "3", failing=[5]) as (url, requests):
        with pytest.raises(ServerError):
            evaluate_endpoint(CONFIG, data, Endpoint(url, "m"), out)
        evaluate_endpoint(CONFIG, data, Endpoint(url, "other"), out)
    assert len(requests) == 5 + NUM_ROWS


@pytest.mark.parametrize(
    ("config", "model", "reuse"),
    [
        (CONFIG, "m", False),
        (CONFIG, "n", True),
        (CONFIG.model_copy(update={"num_rows": 2}), "m", True),
    ],
    ids=["not asked to", "another model", "fewer rows"],
)
def test_only_the_same_evaluation_is_taken_as_it_is(
    data: SourceConfig, tmp_path: Path, config: EvaluationConfig, model: str, reuse: bool
) -> None:
    out = tmp_path / "out"
    with judge(lambda *_: "3") as (url, requests):
        first = evaluate_endpoint(CONFIG, data, Endpoint(url, "m"), out)
        again = evaluate_endpoint(CONFIG, data, Endpoint(url, "m"), out, reuse=True)
        assert again == first and len(requests) == NUM_ROWS
        with pytest.raises(ArtifactError, match="exists already"):
            evaluate_endpoint(config, data, Endpoint(url, model), out, reuse=reuse)


def test_a_judge_is_asked_and_paid_once_for_each_judgement(
    data: SourceConfig, tmp_path: Path
) -> None:
    def config(url: str) -> EvaluationConfig:
        settings = JudgeConfig(url=url, model="judge", concurrency=1)
        return CONFIG.model_copy(update={"metrics": ("judge",), "judge": settings})

    with (
        judge(lambda *_: "30") as (url, answered),
        judge(prefer_longer, failing=[5]) as (judge_url, judged),
    ):
        with pytest.raises(ServerError):
            evaluate_endpoint(config(judge_url), data, Endpoint(url, "m"), tmp_path / "a")
        assert len(answered) == NUM_ROWS
        first = evaluate_endpoint(config(judge_url), data, Endpoint(url, "m"), tmp_path / "a")
        assert len(answered) == NUM_ROWS
        assert len(judged) == 2 + 2 * NUM_ROWS + 1  # two checks and the failure
    assert first.manifest.metrics["metrics"]["judge"]["value"] == 1.0


def test_a_comparison_keeps_its_judgements(data: SourceConfig, tmp_path: Path) -> None:
    with (
        judge(lambda *_: "30") as (long_url, _),
        judge(lambda *_: "3") as (short_url, _),
        judge(prefer_longer, failing=[8]) as (judge_url, judged),
    ):
        long = evaluate_endpoint(CONFIG, data, Endpoint(long_url, "m"), tmp_path / "long")
        short = evaluate_endpoint(CONFIG, data, Endpoint(short_url, "m"), tmp_path / "short")
        settings = JudgeConfig(url=judge_url, model="judge", concurrency=1)
        config = CONFIG.model_copy(update={"judge": settings})
        with pytest.raises(ServerError):
            report_evaluations(config, short, long, tmp_path / "report")
        report = report_evaluations(config, short, long, tmp_path / "report")
    assert len(judged) == 2 * NUM_ROWS + 1
    assert report.manifest.metrics["judge"]["win_rate"] == 1.0


def test_answers_without_a_file_are_none(tmp_path: Path) -> None:
    with kept_answers(tmp_path / "out") as kept:
        assert kept.found == {}
        kept.keep("key", {"text": "\ud83d"})  # half of a surrogate pair
        assert (tmp_path / ".out.answers").exists()
    assert not (tmp_path / ".out.answers").exists()
