from __future__ import annotations

import pytest

from tuneline.core.statistics import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine
        # 17 (1998), table I, method 3 (score without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # The mirror image of the row with no success.
        (20, 20, 1 - 0.1611, 1.0),
    ],
)
def test_wilson_interval_equals_published_values(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes / trials, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("trials", [1, 3, 20, 1000])
def test_an_interval_reaches_the_exact_ends(trials: int) -> None:
    assert wilson_interval(0.0, trials)[0] == 0.0
    assert wilson_interval(1.0, trials)[1] == 1.0


def test_no_trial_says_nothing() -> None:
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


def test_more_trials_narrow_the_interval() -> None:
    widths = [high - low for low, high in (wilson_interval(0.3, n) for n in (10, 12.5, 100))]
    assert widths == sorted(widths, reverse=True)
