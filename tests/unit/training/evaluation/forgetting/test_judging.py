from __future__ import annotations

import random

import pytest

from training.evaluation.answerer import Reply
from training.evaluation.forgetting.items import suite_items
from training.evaluation.forgetting.judging import CONSTANT, judge_forgetting
from tuneline.core.verdict import Verdict

ITEMS = suite_items()
ALL, NONE = [True] * len(ITEMS), [False] * len(ITEMS)


def _share(share: float, seed: int) -> list[bool]:
    draw = random.Random(seed)
    return [draw.random() < share for _ in ITEMS]


@pytest.mark.parametrize("answers", [ALL, _share(0.7, 1)])
def test_equal_models_pass(answers: list[bool]) -> None:
    report = judge_forgetting(ITEMS, answers, answers)
    assert report.verdict is Verdict.PASS
    assert report.difference == 0.0
    assert -0.05 < report.interval[0] < 0 < report.interval[1] < 0.05
    assert {skill.mcnemar_p for skill in report.skills.values()} == {1.0}
    assert report.problems == ()


def test_equal_answers_to_few_items_do_not_rule_out_a_drop() -> None:
    language = [index % 5 == 0 and item.skill == "language" for index, item in enumerate(ITEMS)]
    report = judge_forgetting(ITEMS, language, language)
    assert report.num_items == sum(item.skill == "language" for item in ITEMS)
    assert report.interval[0] < -0.05
    assert report.verdict is Verdict.INCONCLUSIVE


def test_a_base_without_any_skill_has_nothing_to_forget() -> None:
    report = judge_forgetting(ITEMS, NONE, NONE)
    assert report.verdict is Verdict.INVALID
    assert report.num_items == 0
    assert len(report.problems) == 7
    assert all("nothing to forget" in problem for problem in report.problems)


def test_a_base_that_always_says_the_same_has_nothing_to_forget() -> None:
    constant = [item.passes(Reply(CONSTANT, "stop")) for item in ITEMS]
    assert sum(constant) >= 10  # an item that forbids a tool call accepts it
    assert judge_forgetting(ITEMS, constant, NONE).verdict is Verdict.INVALID


def test_one_lost_skill_fails() -> None:
    tuned = [item.skill != "language" for item in ITEMS]
    report = judge_forgetting(ITEMS, ALL, tuned)
    assert report.verdict is Verdict.FAIL
    verdicts = {name: skill.verdict for name, skill in report.skills.items()}
    assert verdicts.pop("language") is Verdict.FAIL
    assert set(verdicts.values()) == {Verdict.PASS}
    (problem,) = report.problems
    assert problem.startswith("language: forgotten: 100 % → 0 %, McNemar p ")


def test_a_skill_that_the_base_lacks_does_not_count() -> None:
    base = [item.skill != "arithmetic" for item in ITEMS]
    report = judge_forgetting(ITEMS, base, base)
    assert report.verdict is Verdict.PASS
    assert report.skills["arithmetic"].verdict is Verdict.INVALID
    assert report.num_items == sum(item.skill != "arithmetic" for item in ITEMS)
    assert report.problems[0].startswith("arithmetic: nothing to forget: the base is at 0 %")


def test_a_drop_over_all_skills_fails_and_a_gain_passes() -> None:
    half = [index % 5 != 0 for index in range(len(ITEMS))]
    down = judge_forgetting(ITEMS, ALL, half)
    assert down.verdict is Verdict.FAIL
    assert down.difference == pytest.approx(-0.2, abs=0.01)
    assert down.interval[0] < -0.2 < down.interval[1] < 0
    assert judge_forgetting(ITEMS, half, ALL).verdict is Verdict.PASS


def test_noise_without_a_change_rarely_fails() -> None:
    verdicts = [
        judge_forgetting(ITEMS, _share(0.7, seed), _share(0.7, 1000 + seed)).verdict
        for seed in range(8)
    ]
    assert verdicts.count(Verdict.FAIL) <= 1
    assert Verdict.INVALID not in verdicts
