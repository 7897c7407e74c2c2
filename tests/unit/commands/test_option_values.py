"""Durations and lists on the command line."""

from __future__ import annotations

import pytest

from tuneline.commands.option_values import seconds_of, whole_numbers
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
    for text in ("", "0,1", "1.5", "a"):
        with pytest.raises(ConfigError, match="expected whole numbers of 1 or more"):
            whole_numbers(text, "--concurrencies", "1,4")
