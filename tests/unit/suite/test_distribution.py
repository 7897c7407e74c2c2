"""The files of a run: their order, those that one worker runs, and what workers share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distribution import FIRST, TOGETHER, order, unit_of_work
from tests.shared import made_once

ROOT = Path(__file__).parents[3]
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("start", [*FIRST, *(start for starts in TOGETHER for start in starts)])
def test_every_place_that_is_named_has_tests(start: str) -> None:
    assert any(path.startswith(start) for path in FILES)


def test_the_longest_tests_come_first() -> None:
    ordered = sorted(FILES, key=order)
    assert ordered[0] == "tests/e2e/line/test_damages.py"
    assert ordered[-1].startswith("tests/unit/")


def test_a_file_is_one_unit_of_work_unless_it_shares() -> None:
    units: dict[str, set[str]] = {}
    for path in FILES:
        units.setdefault(unit_of_work(f"{path}::test_one[a::b]"), set()).add(path)
    assert len(units) > 100
    several = {name: files for name, files in units.items() if len(files) > 1}
    assert several.keys() == {starts[0] for starts in TOGETHER}
    assert several["tests/e2e/serving/test_vllm.py"] == {
        "tests/e2e/serving/test_vllm.py", "tests/e2e/serving/test_clients.py",
    }  # fmt: skip


WORKER = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace
from tests.shared import made_once

def make(folder):
    time.sleep(0.2)  # the other workers ask while this one is at work
    (folder / "who").write_text(sys.argv[2])

factory = SimpleNamespace(getbasetemp=lambda: Path(sys.argv[1]) / sys.argv[2])
print(json.dumps((made_once(factory, "thing", make) / "who").read_text()))
"""


def test_workers_share_a_folder_that_one_of_them_makes(tmp_path: Path) -> None:
    workers = []
    for name in ("gw0", "gw1", "gw2"):
        (tmp_path / name).mkdir()
        env = {**os.environ, "PYTEST_XDIST_WORKER": name, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", WORKER, str(tmp_path), name]
        workers.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    found = {json.loads(worker.communicate(timeout=60)[0]) for worker in workers}
    assert len(found) == 1 and found <= {"gw0", "gw1", "gw2"}


def test_a_folder_that_could_not_be_made_is_made_by_the_next_worker(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path_factory.mktemp("workers")
    monkeypatch.setattr(tmp_path_factory, "getbasetemp", lambda: base / "gw0")
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("no space")

    for _ in range(2):
        with pytest.raises(ValueError, match="no space"):
            made_once(tmp_path_factory, "thing", fail)
    made = made_once(tmp_path_factory, "thing", lambda folder: (folder / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]
    again = made_once(tmp_path_factory, "thing", lambda _: pytest.fail("made already"))
    assert again == made
