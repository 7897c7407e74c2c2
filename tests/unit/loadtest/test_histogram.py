"""Percentiles from bins against numpy's own percentiles of the values."""

import numpy as np
import pytest

from loadtest.histogram import Histogram, count_values, percentile


@pytest.mark.parametrize("q", [0, 50, 90, 99, 99.9])
@pytest.mark.parametrize("seed", range(3))
def test_a_percentile_is_within_a_fifth_of_a_percent(q: float, seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(-2, 1, 20_000)
    found = percentile(count_values(values), q)
    assert found == pytest.approx(np.percentile(values, q), rel=0.004 if q in (0, 99.9) else 0.002)


def test_infinite_values_lie_above_all_others() -> None:
    histogram = Histogram()
    histogram.add(np.array([0.1] * 8 + [np.inf] * 2 + [np.nan]))
    assert histogram.num_values == 10
    assert percentile(histogram.counts, 50, histogram.num_infinite) == pytest.approx(0.1, rel=0.005)
    assert percentile(histogram.counts, 90, histogram.num_infinite) == np.inf
    assert histogram.largest == 0.1


@pytest.mark.parametrize("q", [10, 50, 99])
def test_spread_values_have_the_percentiles_of_all_values(q: int) -> None:
    values = np.random.default_rng(1).exponential(0.01, 50_000)
    histogram = Histogram()
    for part in np.array_split(values, 7):
        histogram.add(part)
    spread = histogram.spread(2000)
    assert len(spread) == 2000
    assert spread[-1] == values.max()
    assert np.percentile(spread, q) == pytest.approx(np.percentile(values, q), rel=0.01)


def test_no_values_have_no_percentile() -> None:
    assert np.isnan(percentile(Histogram().counts, 50))
    assert Histogram().spread(10) == []
