"""Rows on disk keep their file and their source, however many there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.unit.training.data.checks.made import row
from training.data.checks.spool import Spool


def test_each_row_names_its_own_file_and_source(tmp_path: Path) -> None:
    rows = [replace(row("Q", "A", 7), file=f"part-{n:03}.jsonl", source=n) for n in range(300)]
    spool = Spool(tmp_path / "rows.spool")
    spool.add(rows)
    assert [spool.place(n) for n in range(300)] == [
        f"part-{n:03}.jsonl: line 7" for n in range(300)
    ]
    assert list(spool.read_all()) == rows
