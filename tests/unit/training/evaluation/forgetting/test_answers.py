"""The report of the forgetting suite follows from its recorded answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from training.evaluation.forgetting.answers import answers_text, rejudge_forgetting
from training.evaluation.forgetting.items import suite_items
from training.evaluation.forgetting.judging import judge_forgetting
from tuneline.core.errors import ArtifactError
from tuneline.core.verdict import Verdict

ITEMS = suite_items()


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """The answers of a base that knows all, and of a tuned model that lost the skill `json`."""
    base = [item.reply(item.right) for item in ITEMS]
    tuned = [item.reply(item.wrong if item.skill == "json" else item.right) for item in ITEMS]
    path = tmp_path / "answers.jsonl"
    places = [index for index, item in enumerate(ITEMS) if item.skill == "json"]
    replies = {"base": base, "tuned": tuned}
    again = {who: {index: found[index] for index in places} for who, found in replies.items()}
    path.write_text(answers_text(ITEMS, replies, again), encoding="utf-8")
    return path


def test_recorded_answers_give_the_report_again(answers: Path) -> None:
    found = rejudge_forgetting(answers.parent)
    passed = [item.skill != "json" for item in ITEMS]
    lost = [index for index, is_right in enumerate(passed) if not is_right]
    again = {"base": dict.fromkeys(lost, True), "tuned": dict.fromkeys(lost, False)}
    assert found == judge_forgetting(ITEMS, [True] * len(ITEMS), passed, again)
    assert found.verdict is Verdict.FAIL
    assert found.skills["json"].tuned == 0


def test_a_recorded_result_does_not_count(answers: Path) -> None:
    before = rejudge_forgetting(answers.parent)
    text = answers.read_text(encoding="utf-8")
    answers.write_text(text.replace('"passed": false', '"passed": true'), encoding="utf-8")
    assert answers.read_text(encoding="utf-8") != text
    assert rejudge_forgetting(answers.parent) == before


def _without_tuned(text: str) -> str:
    rows = [json.loads(line) for line in text.splitlines()]
    return "\n".join(json.dumps({k: v for k, v in row.items() if k != "tuned"}) for row in rows)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text.partition("\n")[2], "does not hold the answers"),
        (lambda text: text + text, "does not hold the answers"),
        (lambda text: text[:-9], "does not hold the answers"),
        (lambda _: "", "does not hold the answers"),
        (_without_tuned, "does not hold the answers"),
        (lambda text: text.replace(ITEMS[0].id, "other"), "are not to the items"),
        (lambda text: text.replace('"again"', '"more"'), "does not hold second answers"),
    ],
)
def test_other_answers_are_refused(answers: Path, edit: Callable[[str], str], words: str) -> None:
    answers.write_text(edit(answers.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ArtifactError, match=words):
        rejudge_forgetting(answers.parent)


def _with_another_second(text: str) -> str:
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        if "again" in row:
            row["again"]["tuned"] = row["again"]["base"]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_difference_that_does_not_come_again_is_noise(answers: Path) -> None:
    text = _with_another_second(answers.read_text(encoding="utf-8"))
    answers.write_text(text, encoding="utf-8")
    found = rejudge_forgetting(answers.parent)
    num = sum(item.skill == "json" for item in ITEMS)
    assert found.repeats["tuned"].num_changed == found.repeats["base"].num_asked == num > 0
    assert (found.repeats["base"].num_changed, found.difference) == (0, 0.0)
    assert found.verdict is Verdict.PASS


def test_absent_answers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"answers\.jsonl: does not hold the answers"):
        rejudge_forgetting(tmp_path)
