from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest

from tests.commands import tuneline_here
from tests.unit.training.evaluation.metrics.judge_server import judge, prefer_longer
from training.config import EvaluationConfig, JudgeConfig
from training.data.row import Row
from training.evaluation.answer_text import split_fields
from training.evaluation.answerer import Answerer
from training.evaluation.evaluate import _evaluate
from training.evaluation.kept import Kept
from training.evaluation.metrics.ready import require_metrics
from training.evaluation.prediction import Prediction, predict
from training.evaluation.scoring import Scores, score, try_metrics
from training.evaluation.tool_calls import parse_tool_calls, without_channels
from tuneline.core.artifact import Draft
from tuneline.core.errors import ConfigError, DataError, ServerError

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


def test_an_answer_that_is_nested_deeply_is_wrong_and_ends_nothing() -> None:
    deep = '{"a": ' + "[" * 600 + "]" * 600 + "}"
    rows = [_predict('{"a": 1}', deep), _predict('{"a": 2}', '{"a": 2}')] * 2
    scores = _scores(rows, "json")
    assert scores.field_accuracy == {"a": 0.5}
    assert scores.metrics["classes"].value == 0.5


def test_reasoning_before_an_answer_is_not_part_of_it() -> None:
    assert _predict("A: b", "<think>\nhm: x\n</think>\n\nA: b").correct
    assert split_fields("<think>\n\n</think>\n\nA: b", "lines") == {"A": "b"}
    assert not _predict("A: b", "A: b <think>x</think>").correct


def test_line_fields_keep_colons_and_the_first_of_a_name() -> None:
    answer = "Time: 10:30\n\nno field\nTime: 11:00\n: x"
    assert split_fields(answer, "lines") == {"Time": "10:30"}


def test_decomposed_korean_equals_composed_korean() -> None:
    answer = "분류: 네트워크"
    decomposed = unicodedata.normalize("NFD", answer)
    assert answer != decomposed
    assert _predict(decomposed, answer).correct and _predict(answer, decomposed).correct
    assert _scores([_predict(decomposed, answer)], "lines").field_accuracy == {"분류": 1.0}


def test_a_wide_colon_splits_a_line() -> None:
    assert split_fields("分類：通信\n時刻: 10：30", "lines") == {"分類": "通信", "時刻": "10：30"}


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

    def answer(*_: object, **__: object) -> NoReturn:
        pytest.fail("the model answers")

    answerer = Answerer(answer, answer, "never asked")
    with pytest.raises(ConfigError, match=problem) as caught:
        _evaluate(Draft(tmp_path), config, [row], answerer, Kept(tmp_path / "answers", {}))
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


def test_reasoning_that_the_prompt_has_opened_is_not_part_of_the_answer() -> None:
    assert _predict("A: b", "hm: x\n</think>\n\nA: b").correct
    assert _predict("A: b", "<think>is <think> a tag?</think>A: b").correct


CALL = {"name": "book", "arguments": {"seats": 1, "window": True}}
TOOL = {"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}


def _row(**message: Any) -> Row:
    return Row(PROMPT, ({"role": "assistant", **message},), tools=(TOOL,))


@pytest.mark.parametrize(
    ("calls", "is_right"),
    [
        ([CALL], True),
        ([{"name": "book", "arguments": {"window": True, "seats": 1.0}}], True),
        ([{"name": "book", "arguments": {"seats": True, "window": True}}], False),
        ([{"name": "book", "arguments": {"seats": 1, "window": 1}}], False),
        ([{"name": "book", "arguments": '{"seats": 1'}], False),  # a server's broken call
        ([CALL, CALL], False),
        ([], False),
    ],
)
def test_tool_calls_are_compared_by_type(calls: list[Any], is_right: bool) -> None:
    row = _row(tool_calls=[{"type": "function", "function": CALL}])
    assert predict(row, "One moment.", "stop", calls).correct is is_right


def test_a_call_that_nobody_expects_is_wrong() -> None:
    row = _row(content="Done.")
    assert predict(row, "Done.", "stop").correct
    assert not predict(row, "Done.", "stop", [CALL]).correct
    # Data may have its calls as text, and the parser takes them for calls.
    text = json.dumps(CALL)
    assert predict(_row(content=text), text, "stop", [CALL]).correct


def test_text_metrics_leave_out_answers_that_only_call_tools() -> None:
    row = _row(tool_calls=[{"type": "function", "function": CALL}])
    calls = [predict(row, "", "stop", [{**CALL, "name": "cancel"}])] * 2
    assert list(score(calls, EvaluationConfig())[1].metrics) == ["exact_match"]
    mixed = [*calls, _predict("A long text.", "A long text."), _predict("Another.", "Other.")]
    metrics = score(mixed, EvaluationConfig())[1].metrics
    assert (metrics["chrf"].num_rows, metrics["rouge_l"].num_rows) == (2, 2)
    as_json = [*calls, _predict('{"a": 1}', '{"a": 1}')]
    assert _scores(as_json, "json").field_accuracy == {"a": 1.0}


EXPECTED_YES = [Row(PROMPT, ({"role": "assistant", "content": "yes"},))] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"python": "metric.py:length"}, "row 1: returned .*expected a finite number"),
        ({"fields": "json"}, "is not a JSON object"),
        ({"metrics": ("classes",)}, "are not classes"),
    ],
)
def test_metrics_are_tried_on_the_expected_answers(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("metric.py").write_text("def length(row):\n    return [len(row['answer'])]\n")
    with pytest.raises(ConfigError, match=message):
        try_metrics(EvaluationConfig.model_validate(options), EXPECTED_YES)


def test_the_judge_is_asked_once_before_the_model() -> None:
    rows = EXPECTED_YES
    with judge(prefer_longer) as (url, requests):
        try_metrics(EvaluationConfig(judge=JudgeConfig(url=url, model="m")), rows)
    assert len(requests) == 1
    with judge(prefer_longer, status=404) as (url, _), pytest.raises(ServerError, match="judge"):
        try_metrics(EvaluationConfig(judge=JudgeConfig(url=url, model="m")), rows)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<|channel|>final<|message|>Yes.<|return|>", "Yes."),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
         "Yes."),
        (" to=functions.book<|channel|>commentary json<|message|>{\"seats\": 1}<|call|>", None),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary "
         "to=functions.book <|constrain|>json<|message|>{\"seats\": 1}<|call|>", None),
        ("<|channel|>analysis<|message|>never done", ""),
        ("A plain text.<|im_end|>", "A plain text.<|im_end|>"),
    ],
)  # fmt: skip
def test_channels_of_gpt_oss_become_an_answer_or_a_call(text: str, answer: str | None) -> None:
    found = without_channels(text)
    if answer is None:
        assert parse_tool_calls(found, [TOOL]) == ({"name": "book", "arguments": {"seats": 1}},)
    else:
        assert found == answer
