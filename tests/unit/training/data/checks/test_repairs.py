"""Checks that change rows come first: changed rows are compared and split as they are trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training.data.checks.made import checked, result_of, row
from training.data.checks.run import Checked, Split
from training.data.checks.table import CHECKS, REPAIRING
from training.data.row import Row

SUBJECTS = ("invoice", "contract", "parcel", "ticket", "voucher", "refund", "order", "badge")


def letters(num_addresses: int = 3) -> list[Row]:
    """Return rows of eight prompts, each with several mail addresses."""
    return [
        row(f"Please send the {subject} to user{n}@company{n}.com", f"Sent: {subject}.", line)
        for line, (subject, n) in enumerate(
            ((subject, n) for subject in SUBJECTS for n in range(num_addresses)), start=1
        )
    ]


def prompts(found: Checked, heldout: bool) -> list[str]:
    return [one.prompt[0]["content"] for one in found.rows(heldout)]


def test_checks_that_change_rows_come_before_the_checks_that_compare() -> None:
    places = [place for place, check in enumerate(CHECKS) if check.repair is not None]
    assert [CHECKS[place] for place in places] == list(REPAIRING)
    assert max(places) < min(n for n, check in enumerate(CHECKS) if check.compare is not None)


def test_a_masked_prompt_is_never_on_both_sides(tmp_path: Path) -> None:
    found = checked(tmp_path, letters(), split=Split(0.5), personal_data="fix")
    train, heldout = prompts(found, False), prompts(found, True)
    assert sorted(train + heldout) == sorted(f"Please send the {s} to [email]" for s in SUBJECTS)
    assert (len(train), len(heldout)) == (4, 4)
    result = result_of(found, "personal_data")
    assert (result.num_rows, result.num_changed, result.num_dropped) == (24, 24, 0)
    assert result_of(found, "duplicates").num_dropped == 16


def test_a_masked_prompt_leaks_from_a_held_out_file(tmp_path: Path) -> None:
    rows = letters(1)
    held = row("Please send the badge to other@company.org", "Sent: badge.", 90)
    found = checked(tmp_path, rows, [held], personal_data="fix")
    assert [one.line for one in found.rows(False)] == list(range(1, 8))
    assert result_of(found, "leakage").examples[0]["excerpt"].endswith("[email]")


def test_masked_rows_with_different_answers_contradict(tmp_path: Path) -> None:
    rows = [row(f"Is user{n}@company.com known?", answer, n + 1)
            for n, answer in enumerate(["Yes.", "No."])]  # fmt: skip
    assert result_of(checked(tmp_path, rows), "contradictions").num_rows == 0
    (tmp_path / "fixed").mkdir()
    found = checked(tmp_path / "fixed", rows, personal_data="fix")
    assert result_of(found, "contradictions").num_rows == 2


def test_similar_rows_are_compared_as_changed(tmp_path: Path) -> None:
    rows = [
        row(f"{'x' * n} Write to {name * 12}@{name * 12}.com now.", "The mail is written.", n)
        for n, name in enumerate(["abcd", "efgh"], start=1)
    ]
    assert result_of(checked(tmp_path, rows), "near_duplicates").num_rows == 0
    (tmp_path / "fixed").mkdir()
    found = checked(tmp_path / "fixed", rows, personal_data="fix")
    assert result_of(found, "near_duplicates").num_rows == 1


@pytest.mark.parametrize("action", ["warn", "fix"])
def test_the_finding_shows_the_row_before_its_change(tmp_path: Path, action: str) -> None:
    found = checked(tmp_path, letters(1), personal_data=action)
    example = result_of(found, "personal_data").examples[0]
    assert (example["kind"], example["line"]) == ("email", 1)
    assert example["excerpt"] == "u****@********.**m"


CARD = "4539 1488 0343 6467"


@pytest.mark.parametrize("padding", range(12))
def test_a_cut_excerpt_shows_no_part_of_a_number(tmp_path: Path, padding: int) -> None:
    answer = (
        "We will charge your card once. Please confirm that this is right now. The number is "
        f"{CARD} and we hope that the number is the right one {'x' * padding},"
    )
    result = result_of(checked(tmp_path, [row("Which card?", answer)]), "truncation")
    assert result.num_rows == 1
    shown = result.examples[0]["excerpt"]
    assert shown.startswith("…") and shown.endswith("x,"[-1 if not padding else 0 :])
    assert not set(shown) & set("0123456789")


def test_excerpts_mask_the_numbers_of_the_regions_of_the_run(tmp_path: Path) -> None:
    rows = [row("Der Kunde ruft unter 030 12345670 an.", "Ja.", line) for line in (1, 2)]
    regions = {"action": "warn", "regions": ["DE"]}
    found = checked(tmp_path, rows, personal_data=regions)
    assert result_of(found, "duplicates").examples[0]["excerpt"] == (
        "Der Kunde ruft unter [phone] an."
    )


def test_labels_are_masked_before_they_are_cut(tmp_path: Path) -> None:
    answer = f"Please pay with the number of the card of our office: {CARD}"
    rows = [row(f"Question {line}?", answer, line) for line in range(1, 13)]
    (example,) = result_of(checked(tmp_path, rows), "labels").examples
    assert "[card]" in example["excerpt"] and "4539" not in example["excerpt"]
