"""Rows whose expected answers a model finds unlikely, from predictions made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands import tuneline_here
from training.evaluation.suspects import find_suspects
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ConfigError, NotAnArtifactError


def prediction(expected: str, answer: str, nats: float | None, **more: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": "Write to kim.minsu@naver.com: " + "x" * 90}],
        "expected": expected,
        "answer": answer,
        "correct": expected == answer,
        "finish_reason": "stop",
        "nats": nats,
        "num_answer_tokens": None if nats is None else 2,
        **more,
    }


def evaluation(tmp_path: Path, *predictions: dict[str, Any]) -> Artifact:
    with new_artifact(tmp_path / "evaluation", "evaluation", config={}, inputs=[]) as draft:
        lines = [json.dumps(line) + "\n" for line in predictions]
        (draft.dir / "predictions.jsonl").write_text("".join(lines))
        (draft.dir / "evaluation.json").write_text("{}")
    return open_artifact(tmp_path / "evaluation")


def test_wrong_answers_are_ranked_by_loss_per_token(tmp_path: Path) -> None:
    found = find_suspects(
        evaluation(
            tmp_path,
            prediction("Network", "Network", 30.0),
            prediction("Sales", "Billing", 2.0),
            prediction("Email", "Network", 9.0),
            prediction("Email", "Sales", 4.0),
        ),
        num_rows=2,
    )
    assert [(row.line, row.nats_per_token) for row in found] == [(3, 4.5), (4, 2.0)]
    assert (found[0].expected, found[0].answer) == ("Email", "Network")


def test_a_suspect_has_its_line_where_other_rows_were_left_out(tmp_path: Path) -> None:
    (row,) = find_suspects(evaluation(tmp_path, prediction("Email", "Network", 9.0, line=7)))
    assert row.line == 7


def test_excerpts_are_short_and_without_personal_data(tmp_path: Path) -> None:
    (row,) = find_suspects(evaluation(tmp_path, prediction("Email", "Network", 9.0)))
    assert row.prompt.startswith("Write to [email]: xxx")
    assert len(row.prompt) == 80


def test_an_evaluation_without_losses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the metric nats") as caught:
        find_suspects(evaluation(tmp_path, prediction("Email", "Network", None)))
    assert "RUN.yaml --set 'evaluation.metrics=[exact_match,nats]'" in str(caught.value.hint)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotAnArtifactError, match="line 1: expected a prediction"):
        find_suspects(evaluation(tmp_path, {"prompt": 1}))


def test_the_command_prints_the_rows(tmp_path: Path) -> None:
    artifact = evaluation(tmp_path, prediction("Email", "Network", 9.0))
    done = tuneline_here("data", "suspects", str(artifact.path), "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["suspects"]
    assert (row["line"], row["nats_per_token"]) == (1, 4.5)
