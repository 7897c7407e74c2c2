"""Rows made for the tests of checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config.checks import ChecksConfig
from training.data.checks.run import Checked, Result, Split, check_rows, require_accepted
from training.data.checks.spool import Spool
from training.data.row import Row

SUBJECTS = (
    "printer", "router", "laptop", "monitor", "keyboard", "headset", "camera", "tablet", "scanner",
    "projector", "charger", "speaker",
)  # fmt: skip
FAULTS = (
    "shows a blue line after the update and then switches itself off within a minute",
    "cannot find the wireless network in the meeting room on the third floor",
    "makes a loud noise whenever the fan starts in the early morning",
    "asks for a password that nobody in our department has ever set",
    "was delivered yesterday without the cable that the order confirmation lists",
)
ANSWERS = (
    "Please unplug it, wait thirty seconds, and start it again while you keep the power key down.",
    "Our colleague on that floor replaces the access point today, so try it again after lunch.",
    "A technician will clean the fan on Thursday; until then you can use the spare device.",
    "The first password is printed on the sticker below the device, next to the serial number.",
    "We have sent the missing cable by courier, and it should reach you before the weekend.",
)


def row(prompt: str, answer: str, line: int = 1, **more: Any) -> Row:
    return Row(
        prompt=({"role": "user", "content": prompt},),
        completion=({"role": "assistant", "content": answer},),
        line=line,
        file="rows.jsonl",
        **more,
    )


def clean_rows(num_rows: int = 60) -> list[Row]:
    """Return rows with which no check has anything to do: every prompt and answer is another."""
    rows = []
    for number in range(num_rows):
        subject, fault = SUBJECTS[number % 12], FAULTS[number // 12]
        prompt = f"Ticket {number * 7919 % 1000}: my {subject} {fault}. Who helps?"
        answer = f"{subject.title()} number {number}: {ANSWERS[number // 12]}"
        rows.append(row(prompt, answer, number + 1))
    return rows


def checked(
    tmp_path: Path,
    rows: Sequence[Row],
    heldout: Sequence[Row] = (),
    split: Split | None = None,
    seed: int = 0,
    **checks: Any,
) -> Checked:
    """Return rows after their checks; the spool stays open for the test."""
    spool = Spool(tmp_path / "rows.spool")
    spool.add(rows)
    spool.add(heldout, heldout=True)
    found = check_rows(spool, ChecksConfig.model_validate(checks), seed=seed, split=split)
    require_accepted(found)
    return found


def result_of(found: Checked, check: str) -> Result:
    (result,) = [result for result in found.results if result.check.name == check]
    return result


def lines(result: Result) -> list[int]:
    return sorted(example["line"] for example in result.examples)
