from __future__ import annotations

import pytest

from tests.skips import EXPECTED_SKIPS, unexpected_skips

pytest_plugins = ["pytester"]


def test_expected_skips_pass() -> None:
    reasons = [f"Skipped: {part}" for part, most in EXPECTED_SKIPS.items() for _ in range(most)]
    assert len(reasons) > len(EXPECTED_SKIPS)
    assert unexpected_skips(reasons) == []


def test_too_many_skips_for_one_reason_are_a_problem() -> None:
    (problem,) = unexpected_skips(["Skipped: there is no NVIDIA GPU here"] * 3)
    assert problem.startswith("3 tests were skipped: there is no NVIDIA GPU here")
    assert problem.endswith("expected at most 2")


def test_an_unknown_reason_is_a_problem() -> None:
    (problem,) = unexpected_skips(["Skipped: could not import 'vllm'"])
    assert problem == ("1 tests were skipped: Skipped: could not import 'vllm'; expected at most 0")


@pytest.mark.parametrize(
    ("reason", "exit_code"), [("there is no NVIDIA GPU here", 0), ("no such library", 1)]
)
def test_a_run_with_an_unexpected_skip_fails(
    pytester: pytest.Pytester, reason: str, exit_code: int
) -> None:
    pytester.makeconftest("from tests.conftest import *")
    pytester.makepyfile(
        f"""
        import pytest

        def test_one() -> None:
            pytest.skip("{reason}")

        def test_two() -> None:
            pass
        """
    )
    result = pytester.runpytest_subprocess(
        "-q", "-p", "no:cacheprovider", "-p", "no:langsmith_plugin"
    )
    assert result.ret == exit_code
    result.stdout.fnmatch_lines(["skipped tests: 1"])
