from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest

from tests.commands import tuneline_here
from training.config import EvaluationConfig
from training.data.row import Row
from training.evaluation.answer_text import split_fields
from training.evaluation.answerer import Answerer
from training.evaluation.evaluate import _evaluate
from training.evaluation.metrics.ready import require_metrics
from training.evaluation.prediction import Prediction, predict
from training.evaluation.scoring import Scores, score
from tuneline.core.artifact import Draft
from tuneline.core.errors import ConfigError, DataError

PROMPT = ({"role": "user", "content": "?"},)


def _predict(expected: str, answer: str, finish: Literal["stop", "length"] = "stop") -> Prediction:
    row = Row(prompt=PROMPT, completion=({"role": "assistant", "content": expected},))
    return predict(row, answer, finish)


def _scores(
    predictions: Sequence[Prediction], fields: Literal["lines", "json"] | None = None
) -> Scores:
    return score(predictions, EvaluationConfig(fields=fields))[1]


def test_scores_equal_hand_counted_ones() -> None:
    predictions = [
        _predict("Category: A\nPriority: low", "Category: A\nPriority: low"),
        _predict("Category: A\nPriority: low", " Category: A\nPriority: low\n"),
        _predict("Category: B\nPriority: low", "Category: B\nPriority: high"),
        _predict("Category: B", "Priority: low", "length"),
        _predict("Category: C", "nonsense", "length"),
    ]
    scores = _scores(predictions, "lines")
    assert (scores.num_rows, scores.num_correct, scores.exact_match) == (5, 2, 0.4)
    assert scores.field_accuracy == {"Category": 3 / 5, "Priority": 2 / 3}
    assert scores.stopped == 0.6


def test_only_whole_answers_are_scored_without_fields() -> None:
    assert _scores([_predict("yes", "yes")]).field_accuracy == {}


def test_json_fields_compare_values() -> None:
    predictions = [
        _predict('{"a": 1, "b": [1]}', '{"b": [1], "a": 2}'),
        _predict('{"a": 1}', "{broken"),
        _predict('{"a": 1}', "[1]"),
        _predict('{"a": null}', "{}"),
    ]
    assert _scores(predictions, "json").field_accuracy == {"a": 0.0, "b": 1.0}


def test_reasoning_before_an_answer_is_not_part_of_it() -> None:
    assert _predict("A: b", "<think>\nhm: x\n</think>\n\nA: b").correct
    assert split_fields("<think>\n\n</think>\n\nA: b", "lines") == {"A": "b"}
    assert not _predict("A: b", "A: b <think>x</think>").correct


def test_line_fields_keep_colons_and_the_first_of_a_name() -> None:
    answer = "Time: 10:30\n\nno field\nTime: 11:00\n: x"
    assert split_fields(answer, "lines") == {"Time": "10:30"}


def test_fields_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ConfigError, match="no expected answer has such fields"):
        _scores([_predict("yes", "yes")], "lines")
    with pytest.raises(DataError, match="row 1: the expected answer is not a JSON object"):
        _scores([_predict("yes", "yes")], "json")


def test_no_predictions_have_no_score() -> None:
    with pytest.raises(ValueError, match="no predictions"):
        _scores([])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"python": "{folder}/metric.py:scroe"}, "has no function scroe"),
        ({"metrics": ["python"]}, "python needs evaluation.python"),
        ({"metrics": ["judge"]}, "judge needs evaluation.judge"),
        ({"judge": {"url": "http://me:pw@host/v1", "model": "m"}}, "evaluation.judge.url: http://"),
        ({"json_schema": "{folder}/metric.py"}, "is not JSON"),
    ],
)
def test_metrics_that_cannot_be_computed_stop_before_a_model_answers(
    options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "metric.py").write_text("def score(row): return 1\n")
    text = json.dumps(options).replace("{folder}", str(tmp_path))
    config = EvaluationConfig.model_validate_json(text)
    row = Row(prompt=PROMPT, completion=({"role": "assistant", "content": "a"},))

    def answer(*_: object) -> NoReturn:
        pytest.fail("the model answers")

    with pytest.raises(ConfigError, match=problem) as caught:
        _evaluate(Draft(tmp_path), config, [row], Answerer(answer, answer))
    assert "pw" not in str(caught.value)
    with pytest.raises(ConfigError, match=problem):
        require_metrics(config)


def test_the_check_of_a_run_looks_at_its_metrics(tmp_path: Path) -> None:
    example = Path(__file__).parents[4] / "examples" / "support-tickets" / "run.yaml"
    (tmp_path / "metric.py").write_text("")
    done = tuneline_here(
        "check", str(example), "--set", f"evaluation.python={tmp_path}/metric.py:score",
        "--runs-dir", str(tmp_path / "runs"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "has no function score" in done.stderr
