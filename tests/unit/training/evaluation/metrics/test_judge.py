"""The judge against a server whose verdicts are known by construction."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from tests.unit.training.evaluation.metrics.judge_server import KEY, judge, prefer_longer
from tests.unit.training.evaluation.metrics.rows import made
from training.config import EvaluationConfig, JudgeConfig
from training.evaluation.metrics.judge import MAX_CHARACTERS, read_choice, score_judge, win_rate
from tuneline.core.errors import ConfigError, ServerError


def _config(url: str, **options: Any) -> EvaluationConfig:
    return EvaluationConfig(judge=JudgeConfig(url=url, model="judge", **options))


def test_answers_win_and_lose_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    rows = made([("short", "a longer one"), ("a longer one", "short"), ("same", "same")])
    with judge(prefer_longer) as (url, requests):
        scored = score_judge(rows, _config(url))
    assert scored.values == [1.0, 0.0, 0.5]
    assert scored.details == {
        "wins": 1, "losses": 1, "ties": 1, "swapped": 0, "unreadable": 0, "num_requests": 4,
    }  # fmt: skip
    # Equal answers cost no request; every other pair costs two, at temperature 0.
    assert len(requests) == 4
    assert {(r["temperature"], r["key"]) for r in requests} == {(0, f"Bearer {KEY}")}


@pytest.mark.parametrize(
    ("reply", "values", "kind"),
    [
        ("[[A]]", [0.5], "swapped"),  # whatever is first
        ("[[C]]", [0.5], "ties"),
        ("I cannot decide.", [None], "unreadable"),
        ("[[B]] at first, but in the end\n[[C]]", [0.5], "ties"),
    ],
)
def test_a_judge_that_looks_at_positions_gives_a_tie(
    reply: str, values: list[float | None], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with judge(lambda *_: reply) as (url, _requests):
        scored = score_judge(made([("a", "b")]), _config(url))
    assert scored.values == values
    assert scored.details[kind] == 1
    assert ("in the other order on 1 of 1 pairs" in caplog.text) == (kind == "swapped")


def test_a_judge_is_bounded_in_rows_and_characters() -> None:
    rows = made([("a", "b" * (2 * MAX_CHARACTERS))] * 5)
    with judge(prefer_longer) as (url, requests):
        scored = score_judge(rows, _config(url, num_rows=2))
    assert scored.values == [1.0, 1.0, None, None, None]
    assert len(requests) == 4
    assert max(len(r["messages"][0]["content"]) for r in requests) < MAX_CHARACTERS + 2000


def test_a_key_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    with (
        caplog.at_level(logging.DEBUG),
        judge(prefer_longer, status=401) as (url, _requests),
        pytest.raises(ServerError) as caught,
    ):
        score_judge(made([("a", "b")]), _config(url))
    assert caught.value.exit_code == 5
    assert caught.value.message.startswith(f"evaluation.judge: {url}")
    assert KEY not in str(caught.value) and KEY not in caplog.text
    assert KEY not in json.dumps(_config(url).model_dump(mode="json"))


def test_a_judge_that_refuses_parameters_is_asked_without_them() -> None:
    rows = made([("a", "bb"), ("ccc", "d"), ("ee", "f")])
    with judge(prefer_longer, refused=("max_tokens", "temperature")) as (url, requests):
        scored = score_judge(rows, _config(url, concurrency=1, max_new_tokens=77))
    assert scored.values == [1.0, 0.0, 0.0]
    answered = [r for r in requests if "max_tokens" not in r and "temperature" not in r]
    assert len(answered) == 6 and len(requests) == 8
    assert {r["max_completion_tokens"] for r in answered} == {77}


def test_a_parameter_that_tuneline_needs_is_refused_with_the_servers_words() -> None:
    with (
        judge(prefer_longer, refused=("model",)) as (url, requests),
        pytest.raises(ServerError, match=r"status 400: .*Unsupported: 'model'"),
    ):
        score_judge(made([("a", "b")]), _config(url, concurrency=1))
    assert 1 <= len(requests) <= 2


def test_a_missing_judge_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"judge needs evaluation\.judge; found none"):
        score_judge(made([("a", "b")]), EvaluationConfig(metrics=("judge",)))
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        score_judge(made([("a", "b")]), _config("ftp://host/v1"))


def test_the_last_verdict_after_reasoning_counts() -> None:
    assert read_choice("<think>[[A]]</think>\n[[B]]") == "B"
    assert read_choice("[[ C ]]") == "tie"
    assert read_choice("A") is None
    assert read_choice("<think>It is [[A]], unless") is None


def test_the_win_rate_counts_a_tie_as_half_and_leaves_out_what_is_unreadable() -> None:
    counts = {"wins": 5, "losses": 1, "ties": 1, "swapped": 1, "unreadable": 2}
    found = win_rate([1.0] * 5 + [0.0, 0.5, 0.5, None, None], counts)
    assert found["win_rate"] == (5 + 2 * 0.5) / 8
    # Five of six decided pairs: 2 * (1 + 6) / 2**6 for the two-sided sign test.
    assert found["sign_test_p"] == pytest.approx(14 / 64)
    assert found["unreadable"] == 2
    assert found["interval"][0] < 0.75 < found["interval"][1]


def test_a_judge_that_sees_only_wins_leaves_an_interval() -> None:
    counts = {"wins": 5, "losses": 0, "ties": 0, "swapped": 0, "unreadable": 0}
    # Wilson's: 5 / (5 + z²).
    assert win_rate([1.0] * 5, counts)["interval"] == pytest.approx((0.5655, 1.0), abs=1e-4)


def test_a_judge_without_any_verdict_gives_no_win_rate() -> None:
    counts = {"wins": 0, "losses": 0, "ties": 0, "swapped": 0, "unreadable": 2}
    found = win_rate([None, None], counts)
    assert found["win_rate"] is None and found["sign_test_p"] == 1.0
    assert found["interval"] is None


def test_a_judge_sees_the_question_behind_a_long_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    document = "Answer by the document. " + "word " * MAX_CHARACTERS + "How much is it?"
    with judge(prefer_longer) as (url, requests):
        score_judge(made([("a", "bc")], prompt=document), _config(url))
    text = requests[0]["messages"][0]["content"]
    assert "Answer by the document." in text and "How much is it?" in text
    assert len(text) < MAX_CHARACTERS + 2000


def test_a_judge_sees_tool_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    call = {"name": "book", "arguments": {"seats": 1}}
    (row,) = made([("", "")])
    rows = [
        row.model_copy(update={"expected_tool_calls": (call,), "tool_calls": calls})
        for calls in ((call,), ({**call, "name": "cancel"},))
    ]
    with judge(prefer_longer) as (url, requests):
        scored = score_judge(rows, _config(url))
    assert scored.values == [0.5, 1.0]  # equal calls are a tie without a request
    assert len(requests) == 2 and 'book({"seats": 1})' in requests[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "export JUDGE_API_KEY="), (404, "/models   (the names")]
)
def test_the_hint_of_a_judge_says_what_to_type(status: int, hint: str) -> None:
    with judge(prefer_longer, status=status) as (url, _requests), pytest.raises(ServerError) as got:
        score_judge(made([("a", "b")]), _config(url))
    assert hint in str(got.value.hint)
