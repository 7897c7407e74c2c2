"""Durations and lists on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from tuneline.commands.option_values import endpoint_of, seconds_of, section_of, whole_numbers
from tuneline.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("20m", 1200.0), ("1.5h", 5400.0)]
)
def test_a_duration(text: str, seconds: float) -> None:
    assert seconds_of(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["", "m", "0", "-3m", "20 min", "inf", "nan", "1d"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--budget .*: expected a duration above 0"):
        seconds_of(text, "--budget")


def test_whole_numbers() -> None:
    assert whole_numbers("1,4,16", "--concurrencies", "1,4") == [1, 4, 16]


@pytest.mark.parametrize("text", ["", "0,1", "1.5", "a"])
def test_other_than_whole_numbers_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected whole numbers of 1 or more"):
        whole_numbers(text, "--concurrencies", "1,4")


@pytest.mark.parametrize(
    ("overrides", "section", "expected"),
    [
        (None, "serving", {}),
        (["serving.parity.concurrency=2"], "serving", {"parity": {"concurrency": 2}}),
        (["data.checks.leakage.action=fix"], "data.checks", {"leakage": {"action": "fix"}}),
    ],
)
def test_overrides_without_a_run_give_their_section(
    overrides: list[str] | None, section: str, expected: dict[str, Any]
) -> None:
    assert section_of(overrides, section, "a folder", "key=1") == expected


@pytest.mark.parametrize("override", ["training.r=4", "serving=4", "serving", "serving.=4"])
def test_an_override_of_another_section_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=f"^--set {override}: "):
        section_of([override], "serving", "a folder", "key=1")


def test_a_variable_of_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ConfigError, match="--api-key-env NO_KEY: the variable is not set"):
        endpoint_of("http://127.0.0.1:1/v1", "m", "NO_KEY")
    monkeypatch.setenv("NO_KEY", "k")
    assert endpoint_of("http://127.0.0.1:1/v1", "m", "NO_KEY").api_key == "k"
