"""Statistics that several rooms report. Pure calculation."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

NUM_RESAMPLES = 2000
"""Resamples of a bootstrap interval: its ends then move by about 2 % of its width."""

MIN_ROWS = 6
"""Rows from which a difference is shown: of fewer rows, all on one side have a two-sided chance
above 5 %, whatever an interval says."""

Z_95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution, for two-sided intervals at 95 %."""


def wilson_interval(share: float, num_trials: float) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion at 95 %.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22
    (1927). The interval stays within 0 and 1, and it is not empty at either end.

    Args:
        share: Successes divided by trials.
        num_trials: Independent trials; not necessarily a whole number. Zero gives (0, 1).
    """
    if not num_trials:
        return 0.0, 1.0
    n, p, z = num_trials, share, Z_95
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding would miss the exact ends.
    return center - half if p > 0 else 0.0, center + half if p < 1 else 1.0


@dataclass(frozen=True)
class PairedCounts:
    """Trials of two systems on the same rows, each right or wrong.

    Attributes:
        both: Rows that both answer correctly.
        first_only: Rows that only the first answers correctly.
        second_only: Rows that only the second answers correctly.
        neither: Rows that neither answers correctly.
    """

    both: int
    first_only: int
    second_only: int
    neither: int

    @property
    def num_rows(self) -> int:
        return self.both + self.first_only + self.second_only + self.neither


def count_pairs(first: Sequence[bool], second: Sequence[bool]) -> PairedCounts:
    """Return how often each of two systems is right on the same rows.

    Raises:
        ValueError: The two have different numbers of rows.
    """
    pairs = Counter(zip(map(bool, first), map(bool, second), strict=True))
    return PairedCounts(
        pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False]
    )


def mcnemar_p(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value of McNemar's test; 1 without a discordant row.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions,
    Psychometrika 12 (1947). Under the hypothesis of equal systems, each discordant row falls to
    either side with probability 1/2, so the p-value is that of a binomial test.
    """
    num_discordant = first_only + second_only
    fewer = min(first_only, second_only)
    # Whole numbers of any size: no rounding before the division.
    tail, ways = 0, 1
    for k in range(fewer + 1):
        tail += ways
        ways = ways * (num_discordant - k) // (k + 1)
    return min(1.0, tail / (1 << num_discordant) * 2)


def paired_share_interval(counts: PairedCounts) -> tuple[float, float]:
    """Return the interval at 95 % of the second system's share minus the first system's share.

    Method 10 of R. G. Newcombe, Improved confidence intervals for the difference between binomial
    proportions based on paired data, Statistics in Medicine 17 (1998). It has a width even if the
    two systems answer alike. No rows give (-1, 1).
    """
    n = counts.num_rows
    if not n:
        return -1.0, 1.0
    a, b, c, d = counts.both, counts.second_only, counts.first_only, counts.neither
    share_1, share_2 = (a + b) / n, (a + c) / n
    low_1, high_1 = wilson_interval(share_1, n)
    low_2, high_2 = wilson_interval(share_2, n)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    covariance = float(a * d - b * c)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / math.sqrt(margins) if margins else 0.0
    down = _hybrid(share_1 - low_1, high_2 - share_2, phi)
    up = _hybrid(high_1 - share_1, share_2 - low_2, phi)
    difference = (b - c) / n
    return max(-1.0, difference - down), min(1.0, difference + up)


def are_shares(values: Iterable[float]) -> bool:
    """Return whether every value is 0 or 1: right or wrong."""
    return {*values} <= {0.0, 1.0}


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval at 95 % of a mean: Wilson's if every value is 0 or 1, else a bootstrap.

    Raises:
        ValueError: There are no values.
    """
    if values and are_shares(values):
        return wilson_interval(sum(values) / len(values), len(values))
    return bootstrap_interval(values)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the expanded percentile bootstrap interval at 95 % of the mean of `values`.

    B. Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979). The
    percentiles are farther out for few values, as Student's t is: T. Hesterberg, What teachers
    should know about the bootstrap, The American Statistician 69 (2015). With six values, the plain
    percentiles contain the true mean of a normal distribution in 86 % of all cases.

    Args:
        values: One value per row; of a pair of systems, their difference.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values to resample")
    draw = random.Random(0)
    means = sorted(
        math.fsum(draw.choices(values, k=len(values))) / len(values) for _ in range(NUM_RESAMPLES)
    )
    n = len(values)
    spread = math.sqrt(n / (n - 1)) * student_t(n - 1) if n > 1 else Z_95
    cut = max(1, round(NUM_RESAMPLES * NormalDist().cdf(-spread)))
    return means[cut - 1], means[-cut]


def student_t(degrees: int) -> float:
    """Return the 97.5 % point of Student's t: of five degrees and more within 0.2 %.

    M. Abramowitz and I. Stegun, Handbook of mathematical functions (1964), 26.7.5.
    """
    z, v = Z_95, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def _hybrid(first: float, second: float, phi: float) -> float:
    """Return the length of the sum of two half widths with correlation `-phi`."""
    return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))
