"""Checks that compare rows: duplicates, leaks, contradictions, languages, labels."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.data.checks.made import (
    checked,
    clean_rows,
    lines,
    result_of,
    row,
)
from training.data.checks.languages import script_of
from training.data.checks.run import Split
from training.data.row import Row
from tuneline.core.errors import DataError


def changed(original: Row, line: int, *, prompt: bool = False, answer: bool = False) -> Row:
    """Return a row with one word added to its prompt or to its answer."""
    return row(
        original.prompt[0]["content"] + (" Soon?" if prompt else ""),
        original.answer + (" Bye." if answer else ""),
        line,
    )


def test_the_later_of_equal_rows_is_dropped(tmp_path: Path) -> None:
    rows = [*clean_rows(20), *(row(r.prompt[0]["content"], r.answer, 30) for r in clean_rows(3))]
    found = checked(tmp_path, rows)
    result = result_of(found, "duplicates")
    assert (result.num_rows, result.num_dropped) == (3, 3)
    assert [e["other"] for e in result.examples] == [f"rows.jsonl: line {n}" for n in (1, 2, 3)]
    assert [kept.line for kept in found.rows(False)] == list(range(1, 21))


def test_rows_that_differ_in_another_column_are_equal(tmp_path: Path) -> None:
    rows = [row("Q", "A", 1, fields={"id": 1}), row("Q", "A", 2, fields={"id": 2})]
    assert result_of(checked(tmp_path, rows), "duplicates").num_dropped == 1


def test_a_similar_row_is_found_and_kept_by_default(tmp_path: Path) -> None:
    rows = clean_rows(40)
    rows.append(changed(rows[4], 41, prompt=True, answer=True))
    found = checked(tmp_path, rows)
    result = result_of(found, "near_duplicates")
    assert (lines(result), result.num_dropped) == ([41], 0)
    assert result.examples[0]["other"] == "rows.jsonl: line 5"
    assert len(list(found.rows(False))) == 41


@pytest.mark.parametrize(
    "change",
    [
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: text.replace(" ", " \u200b"),
        lambda text: text.replace("3", "３"),
        lambda text: f"\u200f{text}\ufeff",
    ],
    ids=["decomposed", "zero width", "full width", "marks"],
)
def test_unseen_differences_make_near_duplicates_and_no_contradiction(
    tmp_path: Path, change: Callable[[str], str]
) -> None:
    asked, told = "3번 창구의 환불은 어떻게 합니까?", "3번 창구에 영수증을 가져오시면 됩니다."
    rows = [row(asked, told), row(change(asked), change(told), 2)]
    found = checked(tmp_path, rows)
    (example,) = result_of(found, "near_duplicates").examples
    assert (example["line"], example["excerpt"]) == (2, "similarity 1.00")
    assert result_of(found, "contradictions").num_rows == 0


def test_spacing_and_unicode_form_are_no_other_answer(tmp_path: Path) -> None:
    told = "한강입니다. 서울에 있습니다."
    answers = [told, unicodedata.normalize("NFD", told), told.replace(" ", "\n"), "낙동강입니다."]
    rows = [row("강은 무엇?", answer, n) for n, answer in enumerate(answers, start=1)]
    result = result_of(checked(tmp_path, rows, contradictions="fix"), "contradictions")
    assert (result.num_rows, result.num_dropped) == (4, 1)


def test_fix_drops_a_similar_row(tmp_path: Path) -> None:
    rows = clean_rows(40)
    rows.append(changed(rows[4], 41, answer=True))
    found = checked(tmp_path, rows, near_duplicates={"action": "fix", "similarity": 0.85})
    assert result_of(found, "near_duplicates").num_dropped == 1


def test_a_similar_prompt_with_another_answer_is_no_duplicate(tmp_path: Path) -> None:
    rows = clean_rows(40)
    rows.append(row(rows[4].prompt[0]["content"] + " Soon?", "The lamp has to be green first.", 41))
    assert result_of(checked(tmp_path, rows), "near_duplicates").num_rows == 0


@pytest.mark.parametrize(
    "verdict",
    [
        "label",
        "preference",
    ],
)
def test_equal_texts_with_another_verdict_are_no_near_duplicates(
    tmp_path: Path, verdict: str
) -> None:
    rows = clean_rows(40)
    if verdict == "label":
        first = replace(rows[4], label=True)
        second = replace(rows[4], line=41, label=False)
    else:
        first = replace(rows[4], rejected=rows[30].completion)
        second = replace(first, line=41, completion=first.rejected, rejected=first.completion)
    found = checked(tmp_path, [*rows[:4], first, second], near_duplicates="fix")
    assert result_of(found, "near_duplicates").num_rows == 0
    assert lines(result_of(found, "contradictions")) == [5, 41]


def test_pairs_with_two_similar_answers_each_are_near_duplicates(tmp_path: Path) -> None:
    rows = clean_rows(40)
    first = replace(rows[4], rejected=rows[30].completion)
    second = replace(
        changed(rows[4], 41, answer=True), rejected=changed(rows[30], 0, answer=True).completion
    )
    found = checked(tmp_path, [*rows[:4], first, second])
    assert lines(result_of(found, "near_duplicates")) == [41]


def test_a_shared_instruction_makes_no_duplicates(tmp_path: Path) -> None:
    instruction = "Read the ticket below and name its category, its urgency and the team. " * 4
    rows = [
        row(instruction + r.prompt[0]["content"], f"Category: {n % 5}", n)
        for n, r in enumerate(clean_rows(60) + clean_rows(60)[:0], start=1)
    ]
    more = [row(instruction + f"Word {n * 977} and {n * 331}", "Category: 1", n + 100)
            for n in range(60)]  # fmt: skip
    assert result_of(checked(tmp_path, rows + more), "near_duplicates").num_rows == 0


def test_a_held_out_prompt_leaks_by_case_and_spacing(tmp_path: Path) -> None:
    rows = clean_rows(40)
    leaked = row("  " + rows[35].prompt[0]["content"].upper(), "Another answer.", 41)
    found = checked(tmp_path, [*rows[:30], leaked], rows[30:])
    result = result_of(found, "leakage")
    assert (lines(result), result.num_dropped) == ([41], 1)
    assert result.examples[0]["other"] == "rows.jsonl: line 36"
    assert len(list(found.rows(True))) == 10


def test_a_held_out_prompt_leaks_as_an_earlier_turn(tmp_path: Path) -> None:
    rows = clean_rows(40)
    opening = {"role": "user", "content": rows[35].prompt[0]["content"].upper()}
    answer = {"role": "assistant", "content": "Another answer."}
    more = {"role": "user", "content": "And then, what does the green lamp say about the door?"}
    talk = replace(row("Q", "A third answer.", 41), prompt=(opening, answer, more))
    excluded = replace(talk, line=42, untrained=(1,), completion=({**answer, "content": "No."},))
    found = checked(tmp_path, [*rows[:30], talk, excluded], rows[30:])
    result = result_of(found, "leakage")
    assert (lines(result), result.num_dropped) == ([41], 1)
    assert result.examples[0]["other"] == "rows.jsonl: line 36"
    # A row that leaks twice is one row.
    twice = replace(talk, prompt=(opening, answer, rows[36].prompt[0]), completion=(answer,))
    both = replace(talk, line=42, prompt=rows[36].prompt, completion=(answer, opening, answer))
    (tmp_path / "twice").mkdir()
    found = checked(tmp_path / "twice", [*rows[:30], twice, both], rows[30:])
    assert lines(result_of(found, "leakage")) == [41, 42]


@pytest.mark.parametrize(("action", "num_left"), [("warn", 31), ("fix", 30)])
def test_a_similar_held_out_prompt_leaks(tmp_path: Path, action: str, num_left: int) -> None:
    rows = clean_rows(40)
    leaked = row(rows[35].prompt[0]["content"] + " Soon?", "Another answer.", 41)
    found = checked(tmp_path, [*rows[:30], leaked], rows[30:], near_leakage=action)
    assert lines(result_of(found, "near_leakage")) == [41]
    assert len(list(found.rows(False))) == num_left


@pytest.mark.parametrize(
    ("role", "kind"),
    [
        ("system", "similar prompts"), ("user", "equal question and answer"),
        ("earlier answer", "equal question and answer"),
    ],
)  # fmt: skip
def test_a_held_out_answer_to_its_question_is_near(tmp_path: Path, role: str, kind: str) -> None:
    """Only the question and its answer are equal: what is said before it may be another text."""
    rows = clean_rows(60)
    told = "Each spring the council prints a list of places, times and prices for its visitors."
    before: dict[str, Any] = {"role": role, "content": told}
    asked = row("Is the pool open?", "From May on.", 61)
    same = row("is the pool  open?", "from May on.", 62)
    prompt = (before, *same.prompt)
    if role == "user":
        prompt = (before, {"role": "assistant", "content": "I see."}, *same.prompt)
    taught = replace(same, prompt=prompt)
    if role == "earlier answer":
        taught = replace(
            rows[0], line=62,
            prompt=({"role": "system", "content": "Be kind."}, *same.prompt, *same.completion,
                    *rows[0].prompt),
        )  # fmt: skip
    found = checked(tmp_path, [*rows[:50], taught], [*rows[50:], asked])
    assert result_of(found, "leakage").num_rows == 0
    result = result_of(found, "near_leakage")
    assert (lines(result), dict(result.kinds)) == ([62], {kind: 1})
    assert result.examples[0]["other"] == "rows.jsonl: line 61"


def test_a_question_whose_answer_earlier_turns_decide_is_not_near(tmp_path: Path) -> None:
    rows = clean_rows(60)

    def told(text: str, answer: str, line: int) -> Row:
        made = row("Is it paid?", answer, line)
        heard = ({"role": "user", "content": text}, {"role": "assistant", "content": "I see."})
        return replace(made, prompt=(*heard, *made.prompt))

    held = row("Is it paid?", "Yes.", 63)
    more = [told("The bill of March came back.", "Yes.", 61), told("June is open.", "No.", 62)]
    found = checked(tmp_path, [*rows[:50], *more], [*rows[50:], held])
    assert result_of(found, "near_leakage").num_rows == 0
    (tmp_path / "one").mkdir()
    found = checked(tmp_path / "one", [*rows[:50], more[0]], [*rows[50:], held])
    assert lines(result_of(found, "near_leakage")) == [61]


def test_leaks_are_refused_with_both_places(tmp_path: Path) -> None:
    rows = clean_rows(40)
    with pytest.raises(DataError) as caught:
        checked(tmp_path, [*rows[:30], changed(rows[35], 41)], rows[30:], leakage="refuse")
    (problem,) = caught.value.problems
    assert problem.startswith("rows.jsonl: line 41: prompt: equal prompts (rows.jsonl: line 36): ")


def test_different_answers_to_one_prompt_are_found(tmp_path: Path) -> None:
    rows = [*clean_rows(20), row("Is it open?", "Yes.", 21), row("is it  open?", "No.", 22)]
    result = result_of(checked(tmp_path, rows), "contradictions")
    assert (lines(result), result.num_dropped) == ([21, 22], 0)


def test_fix_keeps_the_answer_of_the_majority_with_duplicates(tmp_path: Path) -> None:
    votes = [row("Is it open?", a, 21 + n) for n, a in enumerate(["Yes.", "No.", "Yes.", "Yes."])]
    found = checked(tmp_path, [*clean_rows(20), *votes], contradictions="fix")
    assert [r.line for r in found.rows(False) if r.answer in ("Yes.", "No.")] == [21]


def test_a_row_that_another_check_drops_has_no_vote(tmp_path: Path) -> None:
    answers = ["Yes.", "Yes.", "…", "...", "!?", "—"]
    rows = [row("Is it open?", answer, n) for n, answer in enumerate([*answers, "No."], start=1)]
    found = checked(tmp_path, rows, empty_answers="fix", contradictions="fix")
    assert [kept.answer for kept in found.rows(False)] == ["Yes."]


def test_held_out_duplicates_vote_too(tmp_path: Path) -> None:
    votes = [row("Is it open?", a, 21 + n) for n, a in enumerate(["Yes.", "No.", "Yes.", "Yes."])]
    sides = set()
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        found = checked(
            folder, [*clean_rows(3), *votes], seed=seed, split=Split(0.5), contradictions="fix"
        )
        sides |= {
            heldout for heldout in (False, True) for kept in found.rows(heldout) if kept.line == 21
        }
        kept_lines = [kept.line for side in (False, True) for kept in found.rows(side)]
        assert sorted(kept_lines) == [1, 2, 3, 21]
    assert sides == {False, True}


def test_fix_drops_all_answers_without_a_majority(tmp_path: Path) -> None:
    votes = [row("Is it open?", a, 21 + n) for n, a in enumerate(["Yes.", "No."])]
    found = checked(tmp_path, [*clean_rows(20), *votes], contradictions="fix")
    assert len(list(found.rows(False))) == 20


def test_labels_and_preferences_contradict_in_their_own_way(tmp_path: Path) -> None:
    good, bad = row("Q", "A", 1, label=True), row("Q", "A", 2, label=False)
    other = row("Q", "B", 3, label=False)
    result = result_of(checked(tmp_path, [good, bad, other]), "contradictions")
    assert lines(result) == [1, 2]
    one, two = ({"role": "assistant", "content": text} for text in ("A", "B"))
    pair = row("Q", "A", 1, rejected=(two,))
    swapped, same = row("Q", "B", 2, rejected=(one,)), row("Q", "C", 3, rejected=(two,))
    (tmp_path / "pairs").mkdir()
    result = result_of(checked(tmp_path / "pairs", [pair, swapped, same]), "contradictions")
    assert lines(result) == [1, 2]


def test_a_rare_script_is_found_by_default(tmp_path: Path) -> None:
    korean = row("Who helps?", "라우터를 다시 시작하고 삼십 초 동안 기다려 주세요.", 61)
    result = result_of(checked(tmp_path, [*clean_rows(60), korean]), "languages")
    assert (lines(result), result.kinds) == ([61], {"Hangul/ko": 1})
    [example] = result.examples
    assert (example["column"], example["excerpt"]) == ("completion[0].content", korean.answer)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("请在 settings.json 里设置 MAX_CONNECTIONS，然后重启 nginx 服务。", "Han"),
        ("설정 파일 settings.json에서 MAX_CONNECTIONS를 바꾸고 nginx를 재시작하세요.", "Hangul"),
        ("The word 水 means water, and 火 means fire.", "Latin"),
    ],
)
def test_the_script_of_a_text_with_words_of_another_is_found(text: str, script: str) -> None:
    assert script_of(text) == script


def test_an_answer_with_more_words_of_another_script_is_not_in_another_language(
    tmp_path: Path,
) -> None:
    korean = [row(f"질문 {n}", f"{n}번 라우터를 다시 시작하고 삼십 초 기다려 주세요.", n)
              for n in range(1, 61)]  # fmt: skip
    names = "MAX_CONNECTIONS, MIN_CONNECTIONS, CONNECTION_TIMEOUT, RETRY_LIMIT"
    mixed = row("질문", f"설정 파일의 {names} 값을 확인하세요.", 61)
    english = row("질문", "The router starts again after thirty seconds of waiting.", 62)
    result = result_of(checked(tmp_path, [*korean, mixed, english]), "languages")
    assert script_of(mixed.answer) == "Latin"
    assert lines(result) == [62]


def test_an_unexpected_language_is_found_if_languages_are_named(tmp_path: Path) -> None:
    german = "Bitte schalten Sie das Gerät aus, warten Sie kurz und starten Sie es dann neu."
    rows = [*clean_rows(60), row("Who helps?", german, 61)]
    found = checked(tmp_path, rows, languages={"expected": ["en"]})
    assert lines(result_of(found, "languages")) == [61]
    (tmp_path / "both").mkdir()
    both = checked(tmp_path / "both", rows, languages={"expected": ["en", "de"]})
    assert result_of(both, "languages").num_rows == 0


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("கட்டண மெனுவில் இரண்டாவது விருப்பம்", "Tamil/ta"),
        ("অর্থপ্রদান মেনু থেকে দ্বিতীয় বিকল্পটি বেছে নিন।", "Bengali/bn"),
        ("សូមជ្រើសរើសជម្រើសទីពីរ", "Khmer/km"),
        ("请稍等", "Han"),
        ("Подождите", "Cyrillic"),
    ],
)
def test_every_script_is_unexpected_if_another_is_named(
    tmp_path: Path, answer: str, kind: str
) -> None:
    rows = [*clean_rows(20), row("Who helps?", answer, 21)]
    result = result_of(checked(tmp_path, rows, languages={"expected": ["en"]}), "languages")
    assert (lines(result), result.kinds) == ([21], {kind: 1})


def test_two_languages_in_like_shares_are_no_finding(tmp_path: Path) -> None:
    korean = [row(f"Q{n}", f"{n}번 기기를 끄고 삼십 초 뒤에 다시 켜 주세요.", n) for n in range(20)]
    assert result_of(checked(tmp_path, [*clean_rows(60), *korean]), "languages").num_rows == 0


def labelled(**counts: int) -> list[Row]:
    texts = [label for label, count in counts.items() for _ in range(count)]
    prompts = [f"Ticket {n * 7919}: {n * 104729 % 1000003}" for n in range(len(texts))]
    return [row(p, t, n) for n, (p, t) in enumerate(zip(prompts, texts, strict=True), start=1)]


def test_a_rare_label_is_found(tmp_path: Path) -> None:
    found = checked(tmp_path, labelled(Network=100, Billing=90, Sales=4))
    (example,) = result_of(found, "labels").examples
    assert "4 rows have the answer 'Sales'" in example["excerpt"]


def test_a_label_in_two_spellings_is_found(tmp_path: Path) -> None:
    names = ["Billing", "billing.", "Network", "Billing"]
    rows = [row(f"Question {n * 7919 % 1000}", names[n % 4], n + 1) for n in range(80)]
    result = result_of(checked(tmp_path, rows), "labels")
    assert (lines(result), result.kinds) == ([2], {"one label in two spellings": 1})
    assert result.examples[0]["excerpt"] == (
        "20 rows have the answer 'billing.'; 40 have 'Billing'"
    )


def test_labels_in_balance_are_no_finding(tmp_path: Path) -> None:
    assert result_of(checked(tmp_path, labelled(Network=90, Sales=10)), "labels").num_rows == 0


def test_one_label_for_all_rows_is_found(tmp_path: Path) -> None:
    assert result_of(checked(tmp_path, labelled(Network=20)), "labels").kinds == {"one label": 1}


def test_each_dropped_row_has_one_reason(tmp_path: Path) -> None:
    """A duplicate of a refusal whose prompt is held out is dropped once."""
    rows = clean_rows(40)
    bad = row(rows[35].prompt[0]["content"], "As an AI language model, I cannot.", 41)
    data = [*rows[:30], bad, bad, row("Q", "As an AI model, I cannot.", 42)]
    found = checked(tmp_path, data, rows[30:], refusals="fix")
    dropped = {r.check.name: r.num_dropped for r in found.results if r.num_dropped}
    assert dropped == {"duplicates": 1, "leakage": 1, "refusals": 1}
    assert len(data) == len(list(found.rows(False))) + sum(dropped.values())
