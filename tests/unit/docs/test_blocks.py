"""Commands on pages that need no model run as they are written, in a fresh folder."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.commands import tuneline_here
from tests.unit.docs.pages import Found, arguments, commands

TICKETS = [("My invoice is wrong.", "Billing"), ("The screen stays black.", "Hardware")]
CONVERSIONS = [c for c in commands() if c.text.startswith("tuneline data convert ")]
KEYS = [c for c in commands() if c.page == "docs/serving.md" and c.text.startswith("tuneline keys")]


def _write_files(folder: Path) -> None:
    """Write the files that the commands read, in the shapes that the pages describe."""
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "completion"), *TICKETS])
    rows = [
        {"fields": {"question": prompt}, "responses": {"answer": [{"value": answer}]}}
        for prompt, answer in TICKETS
    ]
    (folder / "argilla.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("block", [*([c] for c in CONVERSIONS), KEYS], ids=lambda b: str(b[0]))
def test_a_block_runs_in_a_fresh_folder(block: Sequence[Found], tmp_path: Path) -> None:
    _write_files(tmp_path)
    with contextlib.chdir(tmp_path):
        failed = {
            command.text: done.stderr
            for command in block
            if (done := tuneline_here(*arguments(command.text))).returncode != 0
        }
    assert failed == {}


def test_the_pages_have_blocks_to_run() -> None:
    assert len(CONVERSIONS) == 2 and len(KEYS) == 4
