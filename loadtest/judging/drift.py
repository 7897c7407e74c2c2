"""Does a figure grow over a run? A robust slope with its interval. Pure.

The slope is the median of the slopes between all pairs of points (Theil, Proceedings of the
Koninklijke Nederlandse Akademie van Wetenschappen 53, 1950; Sen, Journal of the American
Statistical Association 63, 1968): a tenth of outliers moves it little. The interval is Sen's, two
order statistics of these slopes. Its places follow from the variance of Kendall's S. Neighbours in
time depend on each other, so that variance is multiplied by the number of points that count as one
(Yue and Wang, Water Resources Management 18, 2004).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from loadtest.judging.intervals import integrated_time, ranks
from loadtest.report.soak_schema import Drift
from tuneline.core.statistics import Z_95

Values = NDArray[np.float64]

MIN_POINTS = 30
"""With fewer, a strong dependence of neighbours cannot be seen."""
MIN_INDEPENDENT = 5
"""A line has two parameters; fewer points leave nothing to judge it by."""
MAX_POINTS = 120
"""A longer series becomes medians of neighbours: the number of pairs grows with the square."""
SECONDS_PER_HOUR = 3600.0


def drift_of(
    name: str, unit: str, times_s: Values, values: Values, *, is_judged: bool = True
) -> Drift:
    """Return the trend of a series.

    Args:
        times_s: Ascending.
        values: NaN for a point without a value.
        is_judged: Whether an interval is wanted.
    """
    known = np.isfinite(values)
    times_s, values = times_s[known], values[known]
    if len(values) > MAX_POINTS:
        times_s, values = (
            np.array([np.median(part) for part in np.array_split(series, MAX_POINTS)])
            for series in (times_s, values)
        )
    count = len(values)
    if count < 2:
        return Drift(
            name=name, unit=unit, level=None, per_hour=None, ci95=None, n=count,
            without_interval="no series of values",
        )  # fmt: skip
    hours = times_s / SECONDS_PER_HOUR
    slope = theil_sen(hours, values)
    level = float(np.median(values))
    if not is_judged:
        return Drift(
            name=name, unit=unit, level=level, per_hour=slope, ci95=None, n=count,
            without_interval="no objective is set on it",
        )  # fmt: skip
    ci95, reason = _interval(hours, values, slope)
    return Drift(
        name=name, unit=unit, level=level, per_hour=slope, ci95=ci95, n=count,
        without_interval=reason,
    )  # fmt: skip


def theil_sen(times: Values, values: Values) -> float:
    """Return the median slope between all pairs of points."""
    slopes = _slopes(times, values)
    return float(np.median(slopes)) if len(slopes) else 0.0


def _slopes(times: Values, values: Values) -> Values:
    """Return the slopes between all pairs of points."""
    first, second = np.triu_indices(len(times), 1)
    steps = times[second] - times[first]
    kept = steps > 0
    rises = values[second] - values[first]
    found: Values = rises[kept] / steps[kept]
    return found


def _interval(
    hours: Values, values: Values, slope: float
) -> tuple[tuple[float, float] | None, str | None]:
    """Return the 95 % interval of a slope, or why there is none."""
    count = len(values)
    if count < MIN_POINTS:
        return None, f"{count} points; at least {MIN_POINTS} are needed"
    time = points_per_independent(values - slope * hours)
    independent = count / time
    reason = (
        f"{count} points that depend on their neighbours count as {independent:.3g}; at least "
        f"{MIN_INDEPENDENT} are needed"
    )
    if independent < MIN_INDEPENDENT:
        return None, reason
    slopes = np.sort(_slopes(hours, values))
    variance = count * (count - 1) * (2 * count + 5) / 18 * time
    reach = student_quantile(independent - 2) * math.sqrt(variance) / 2
    low, high = math.floor(len(slopes) / 2 - reach), math.ceil(len(slopes) / 2 + reach)
    if low < 0 or high >= len(slopes):
        return None, reason
    return (float(slopes[low]), float(slopes[high])), None


def points_per_independent(residuals: Values) -> float:
    """Return how many residuals of a line count as one, by their ranks.

    The larger of two estimates. The first takes the series for an autoregression of one step. Its
    coefficient is the correlation of neighbours, plus its bias around a fitted line, which is
    -(2 + 4 rho) / n (Marriott and Pope, Biometrika 41, 1954). The second sums correlations at all
    lags, which is right for other series and has a larger error.
    """
    count = len(residuals)
    places = ranks(residuals)
    places = places - places.mean()
    total = float(places @ places)
    if total == 0:
        return 1.0
    rho = float(places[1:] @ places[:-1]) / total
    rho = min(max(rho + (2 + 4 * rho) / count, 0.0), 1 - 2 / count)
    return max((1 + rho) / (1 - rho), integrated_time(places))


def student_quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t for three degrees of freedom or more, within 1 %.

    The expansion around the normal quantile: Abramowitz and Stegun, Handbook of Mathematical
    Functions, 26.7.5.
    """
    z = Z_95
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
