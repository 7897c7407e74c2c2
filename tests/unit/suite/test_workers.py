"""Forked workers: every test is reported, also where a worker dies."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:langsmith_plugin", "--workers", "2")
MEET = """
    import time
    from pathlib import Path

    def test_meets_the_other_file(tmp_path: Path) -> None:
        (Path.cwd() / "{mine}").write_text(tmp_path.parent.name)
        deadline_s = time.monotonic() + 30
        while not (Path.cwd() / "{other}").exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    def test_runs_in_the_same_worker(tmp_path: Path) -> None:
        assert (Path.cwd() / "{mine}").read_text() == tmp_path.parent.name
"""
DIES = """
    import os, warnings, pytest

    def test_before() -> None:
        warnings.warn("a warning of a test")

    def test_dies() -> None:
        os._exit(7)

    def test_after() -> None:
        print("printed in the worker")
        assert False, "a failure of a worker"

    def test_skipped() -> None:
        pytest.skip("there is no NVIDIA GPU here")
"""


def test_files_run_side_by_side_and_every_test_is_reported(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.conftest import *")
    pytester.makepyfile(
        test_one=MEET.format(mine="one", other="two"),
        test_two=MEET.format(mine="two", other="one"),
        test_three=DIES,
        test_four="import os\ndef test_dies_at_the_end() -> None: os._exit(8)",
    )
    # Where a folder has a conftest.py, pytest asks each plugin whether it is one.
    pytester.mkdir("below").joinpath("conftest.py").touch()
    pytester.path.joinpath("test_four.py").rename(pytester.path / "below" / "test_four.py")
    result = pytester.runpytest_subprocess(*OPTIONS)
    result.assert_outcomes(passed=5, failed=3, skipped=1, warnings=1)
    result.stdout.fnmatch_lines([
        "worker? died in this test; its exit code is 8",
        "worker? died in this test; its exit code is 7",
        "*a failure of a worker", "printed in the worker", "*a warning of a test",
        "FAILED test_three.py::test_dies*",
    ])  # fmt: skip
    names = {(pytester.path / name).read_text() for name in ("one", "two")}
    assert names == {"worker0", "worker1"}


def test_an_error_at_the_end_of_a_worker_fails_the_run(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest
        from tests.conftest import *

        @pytest.fixture(scope="session")
        def held():
            yield
            raise ValueError("cannot be closed")
        """
    )
    pytester.makepyfile("def test_one(held) -> None: pass")
    result = pytester.runpytest_subprocess(*OPTIONS)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*ValueError: cannot be closed"])


def test_the_first_failure_ends_a_run_that_asks_for_it(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.conftest import *")
    pytester.makepyfile(
        test_one="def test_fails() -> None: assert False",
        test_two="import time\nimport pytest\n"
        "@pytest.mark.parametrize('number', range(50))\n"
        "def test_slow(number: int) -> None: time.sleep(0.2)",
    )
    result = pytester.runpytest_subprocess(*OPTIONS, "-x")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 1 and outcomes.get("passed", 0) < 20
