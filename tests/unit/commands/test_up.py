from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tuneline.commands.up import _typed
from tuneline.pipeline.run_config import load_run


@pytest.mark.parametrize(
    ("program", "found", "typed"),
    [
        ("/venv/bin/tuneline", "/venv/bin/tuneline", "tuneline"),
        (".venv/bin/tuneline", None, ".venv/bin/tuneline"),
        ("/venv/bin/tuneline", "/other/bin/tuneline", "/venv/bin/tuneline"),
        ("/venv/bin/pytest", None, "tuneline"),
    ],
)
def test_the_next_command_names_the_program_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, found: str | None, typed: str
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    monkeypatch.setattr(shutil, "which", lambda _name: found)
    (tmp_path / "run.yaml").write_text("{name: a, data: {path: rows.jsonl}}")
    assert _typed(load_run(tmp_path / "run.yaml"), "up").split()[:2] == [typed, "up"]
