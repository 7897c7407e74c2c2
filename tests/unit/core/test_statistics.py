from __future__ import annotations

import itertools
import random

import pytest

from tuneline.core.statistics import (
    PairedCounts,
    bootstrap_interval,
    count_pairs,
    mcnemar_p,
    mean_interval,
    paired_share_interval,
    student_t,
    wilson_interval,
)


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


def test_pairs_are_counted_by_who_is_right() -> None:
    first = [True] * 6 + [False] * 4
    second = [True] * 3 + [False] * 3 + [True] * 2 + [False] * 2
    second[3] = True
    assert count_pairs(first, second) == PairedCounts(4, 2, 2, 2)
    assert count_pairs([True] * 3, [False] * 3) == PairedCounts(0, 3, 0, 0)
    assert count_pairs([False] * 3, [True] * 3) == PairedCounts(0, 0, 3, 0)
    assert count_pairs([False] * 3, [False] * 3) == PairedCounts(0, 0, 0, 3)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        count_pairs([True], [])


def test_mcnemar_p_equals_a_binomial_test_of_scipy() -> None:
    from scipy.stats import binomtest

    counts = [*itertools.product(range(12), repeat=2), (40, 12), (3000, 2900)]
    assert len(counts) == 146
    for first, second in counts:
        expected = binomtest(first, first + second).pvalue if first + second else 1.0
        assert mcnemar_p(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("counts", "p"),
    [((0, 0), 1.0), ((1, 0), 1.0), ((6, 0), 0.03125), ((0, 6), 0.03125), ((5, 5), 1.0)],
)
def test_mcnemar_p_at_the_edges(counts: tuple[int, int], p: float) -> None:
    # Six rows on one side: 2 / 2**6.
    assert mcnemar_p(*counts) == p


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        # Newcombe, Improved confidence intervals for the difference between binomial proportions
        # based on paired data, Statistics in Medicine 17 (1998), method 10.
        (PairedCounts(36, 12, 2, 0), (-0.3404, -0.0569)),
        (PairedCounts(36, 2, 12, 0), (0.0569, 0.3404)),
        (PairedCounts(36, 0, 14, 0), (0.1528, 0.4167)),
    ],
)
def test_paired_interval_equals_published_values(
    counts: PairedCounts, interval: tuple[float, float]
) -> None:
    assert paired_share_interval(counts) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(
    ("counts", "half_width"),
    [
        # Both are right on half of the rows, so that each half of Wilson's interval is m, and the
        # paired interval has the half m * sqrt(2 - 2 * phi). Twenty rows: m = 0.20071, and
        # phi = (10 * 10 - 20 / 2) / 100 = 0.9.
        (PairedCounts(10, 0, 0, 10), 0.0898),
        # Ten rows: m = 0.26341, and 3 * 3 - 2 * 2 is no more than 10 / 2, so that phi is 0.
        (PairedCounts(3, 2, 2, 3), 0.3725),
        # Two rows: m = 0.40547, and 1 * 1 is no more than 2 / 2.
        (PairedCounts(1, 0, 0, 1), 0.5734),
    ],
)
def test_pairs_that_go_together_narrow_the_interval(
    counts: PairedCounts, half_width: float
) -> None:
    expected = (-half_width, half_width)
    assert paired_share_interval(counts) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("counts", [PairedCounts(20, 0, 0, 0), PairedCounts(0, 0, 0, 20)])
def test_two_equal_systems_have_an_interval_around_zero(counts: PairedCounts) -> None:
    low, high = paired_share_interval(counts)
    assert -0.25 < low < 0 < high < 0.25
    assert low == pytest.approx(-high)


def test_a_paired_interval_stays_between_minus_one_and_one() -> None:
    counts = [PairedCounts(*cells) for cells in itertools.product(range(5), repeat=4)]
    intervals = [(c, paired_share_interval(c)) for c in counts if c.num_rows]
    assert len(intervals) == 624
    for c, (low, high) in intervals:
        assert -1 <= low <= (c.second_only - c.first_only) / c.num_rows <= high <= 1
    assert paired_share_interval(PairedCounts(0, 0, 0, 0)) == (-1.0, 1.0)


def test_a_paired_interval_covers_the_true_difference() -> None:
    draw = random.Random(0)
    cells, weights = ((1, 1), (1, 0), (0, 1), (0, 0)), (0.5, 0.1, 0.25, 0.15)
    covered = 0
    for _ in range(400):
        pairs = draw.choices(cells, weights, k=60)
        low, high = paired_share_interval(
            count_pairs([bool(a) for a, _ in pairs], [bool(b) for _, b in pairs])
        )
        covered += low <= 0.25 - 0.1 <= high
    assert 0.93 <= covered / 400 <= 0.99


def test_a_bootstrap_interval_covers_the_true_mean() -> None:
    draw = random.Random(2)
    found = [bootstrap_interval([draw.gauss(3, 1) for _ in range(40)]) for _ in range(60)]
    # 93 % of many such intervals cover it, and 60 intervals vary by 3 points.
    assert 0.85 <= sum(low <= 3 <= high for low, high in found) / 60 < 1
    # The width of a normal mean's interval: 2 * 1.96 / sqrt(40).
    widths = sorted(high - low for low, high in found)
    assert widths[30] == pytest.approx(0.62, abs=0.06)


def test_a_bootstrap_interval_of_few_values_covers_the_true_mean() -> None:
    draw = random.Random(5)
    found = [bootstrap_interval([draw.gauss(3, 1) for _ in range(6)]) for _ in range(250)]
    num_right = sum(low <= 3 <= high for low, high in found)
    # The interval of Student's t covers 95 %, plain percentiles 86 %: below 228 of 250.
    assert 228 <= num_right <= 250


@pytest.mark.parametrize(
    ("degrees", "point"), [(5, 2.5706), (9, 2.2622), (29, 2.0452), (199, 1.9720)]
)
def test_student_s_t_equals_the_tables(degrees: int, point: float) -> None:
    assert student_t(degrees) == pytest.approx(point, rel=2e-3)


def test_a_bootstrap_interval_is_the_same_each_time() -> None:
    values = [0.0] * 10 + [1.0] * 10
    low, high = bootstrap_interval(values)
    assert low < 0.35 and high > 0.65
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


@pytest.mark.parametrize(
    ("values", "interval"),
    [
        ([1.0] * 6, (0.6097, 1.0)),  # Wilson's: 6 / (6 + z²)
        ([0.0] * 40, (0.0, 0.0876)),  # z² / (40 + z²)
        ([0.5] * 6, (0.5, 0.5)),
        # Wilson's for 3 of 6: 1/2 - z / (2 * sqrt(6 + z²)).
        ([1.0, 0.0] * 3, (0.1876, 0.8124)),
    ],
)
def test_a_mean_of_right_and_wrong_answers_has_a_width_at_the_ends(
    values: list[float], interval: tuple[float, float]
) -> None:
    assert mean_interval(values) == pytest.approx(interval, abs=1e-4)
