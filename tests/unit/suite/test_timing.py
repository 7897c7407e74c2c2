from __future__ import annotations

from pathlib import Path

import pytest

from tests.timing import MEASURED, MOST_AGAIN

pytest_plugins = ["pytester"]

ONCE_LATE = """
    from pathlib import Path

    def test_time() -> None:
        seen = Path(__file__).with_suffix(".seen")
        runs = int(seen.read_text()) if seen.exists() else 0
        seen.write_text(str(runs + 1))
        assert runs == {late_runs}, "late"
"""


@pytest.mark.parametrize(
    ("folder", "late_runs", "exit_code", "runs"),
    [
        (MEASURED[0], 1, 0, 2),  # late once: it runs again and passes
        (MEASURED[0], 2, 1, 2),  # late twice: the code is wrong
        ("tests/unit/", 1, 1, 1),  # not a test of time
    ],
)
def test_a_test_of_time_runs_once_more(
    pytester: pytest.Pytester, folder: str, late_runs: int, exit_code: int, runs: int
) -> None:
    pytester.makeconftest("from tests.conftest import *")
    pytester.makeini("[pytest]\naddopts = --import-mode=importlib -p no:langsmith_plugin\n")
    made = pytester.makepyfile(ONCE_LATE.format(late_runs=late_runs))
    path = pytester.path / folder / "test_late.py"
    path.parent.mkdir(parents=True)
    made.rename(path)
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", folder)
    assert result.ret == exit_code
    assert path.with_suffix(".seen").read_text() == str(runs)
    result.stdout.fnmatch_lines([f"tests that ran once more: {runs - 1}"])


def test_a_run_with_many_late_tests_fails(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.conftest import *")
    pytester.makeini("[pytest]\naddopts = --import-mode=importlib -p no:langsmith_plugin\n")
    made = pytester.makepyfile(
        f"""
        import pytest

        LATE = set()

        @pytest.mark.parametrize("number", range({MOST_AGAIN + 1}))
        def test_time(number: int) -> None:
            if number not in LATE:
                LATE.add(number)
                raise AssertionError("late")
        """
    )
    path = pytester.path / MEASURED[0] / "test_late.py"
    path.parent.mkdir(parents=True)
    made.rename(path)
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", MEASURED[0])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [f"error: {MOST_AGAIN + 1} tests ran once more; expected at most {MOST_AGAIN}"]
    )


def test_every_folder_of_timed_tests_exists() -> None:
    root = Path(__file__).parents[3]
    assert [folder for folder in MEASURED if not (root / folder).is_dir()] == []
