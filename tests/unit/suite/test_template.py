"""The workers of `pytest -n` come from one process that has imported the tests."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.template import NAME, shared_state, start_python

ROOT = Path(__file__).parents[3]

CONFTEST = """
from tests.template import fork_workers
def pytest_xdist_setupnodes(config, specs):
    config.template = fork_workers(specs, config.args)
"""

TESTS = """
import multiprocessing, os, pathlib, pytest, subprocess, sys
from tests.template import start_python
FOLDER = pathlib.Path(__file__).parent
IMPORTED_IN = os.getpid()
with (FOLDER / "imports").open("a") as file:
    file.write("one\\n")
@pytest.mark.parametrize("number", range(3))
def test_a_worker_is_a_process_of_its_own(number):
    assert IMPORTED_IN != os.getpid()
    assert sys.argv[0].endswith("pytest") or sys.argv == ["-c"]
    with (FOLDER / os.environ["PYTEST_XDIST_WORKER"]).open("a") as file:
        file.write(f"{os.getpid()}\\n")
def test_a_spawned_process_does_not_import_the_template():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(abs, [-1]) == [1]
def test_a_program_runs_in_a_fork_of_the_template():
    program = "import os, sys; print(os.getppid(), sys.stdin.readline()); sys.exit(7)"
    process = start_python(program, stdout=subprocess.PIPE)
    assert process.communicate("given")[0].split() == [str(os.getppid()), "given"]
    assert process.returncode == 7
"""


def run(folder: Path, **files: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a folder by two forked workers."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (folder / "conftest.py").write_text(CONFTEST)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    # The folder has no nvidia-smi, with which workers are not forked.
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(folder)}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        environ.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "."]
    return subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=200
    )


def test_workers_are_forked_from_one_import_of_the_tests(tmp_path: Path) -> None:
    done = run(tmp_path, test_one=TESTS, test_two=TESTS)
    assert done.returncode == 0 and "10 passed" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "imports").read_text() == "one\n" * 2
    workers = [set((tmp_path / name).read_text().split()) for name in ("gw0", "gw1")]
    assert [len(pids) for pids in workers] == [1, 1] and workers[0] != workers[1]


def test_a_program_runs_where_no_template_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    process = start_python(
        "import os, sys; print(os.getppid(), sys.stdin.readline()); sys.exit(7)",
        stdout=subprocess.PIPE,
    )
    assert process.communicate("given")[0].split() == [str(os.getpid()), "given"]
    assert process.returncode == 7


MAKES_A_FOLDER = """
import tempfile
FOLDER = tempfile.TemporaryDirectory(prefix="of-all-workers-")
def test_nothing():
    pass
"""


def test_a_folder_that_an_import_makes_stops_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, test_one=MAKES_A_FOLDER, test_two=TESTS)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert "what their workers would share: the temporary path" in done.stderr
    assert "of-all-workers-" in done.stderr and "passed" not in done.stdout


def start_thread() -> threading.Timer:
    timer = threading.Timer(60, int)
    timer.start()
    return timer


MADE: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "the temporary path": (lambda: tempfile.mkdtemp(), os.rmdir),
    "the open file": (tempfile.TemporaryFile, lambda file: file.close()),
    "the thread": (start_thread, lambda timer: timer.cancel()),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_forked_processes_would_share_is_found(kind: str) -> None:
    make, end = MADE[kind]
    with shared_state() as found:
        made = make()
    end(made)
    assert len(found) == 1 and found[0].startswith(kind)


def test_what_an_import_has_removed_again_is_not_shared() -> None:
    with shared_state() as found, tempfile.TemporaryDirectory(), tempfile.TemporaryFile():
        pass
    assert found == []
