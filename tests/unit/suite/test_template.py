"""The workers of `pytest -n` come from one process that has imported the tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

CONFTEST = """
from tests.template import fork_workers
def pytest_xdist_setupnodes(config, specs):
    config.template = fork_workers(specs, config.args)
"""

TESTS = """
import multiprocessing, os, pathlib, pytest, sys
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
"""


def test_workers_are_forked_from_one_import_of_the_tests(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(TESTS)
    # The folder has no nvidia-smi, with which workers are not forked.
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(tmp_path)}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        environ.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "."]
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 0 and "8 passed" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "imports").read_text() == "one\n" * 2
    workers = [set((tmp_path / name).read_text().split()) for name in ("gw0", "gw1")]
    assert [len(pids) for pids in workers] == [1, 1] and workers[0] != workers[1]
