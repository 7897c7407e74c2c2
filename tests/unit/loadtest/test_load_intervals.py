"""Intervals and steady state against simulated processes whose truth is known."""

import numpy as np
import pytest

from loadtest.intervals import (
    Values,
    block_length,
    bootstrap,
    mser,
    paired_difference,
    steady_state,
)


def correlated(rng: np.random.Generator, count: int, memory: float) -> Values:
    """An AR(1) series of mean 1: neighbours resemble each other, as requests in a batch do."""
    noise = rng.normal(0, 1, count + 200)
    values = np.empty(count + 200)
    values[0] = noise[0]
    for place in range(1, len(values)):
        values[place] = memory * values[place - 1] + noise[place]
    return 10 + values[200:]


def coverage(memory: float, block: int) -> float:
    """How often the interval of the median holds the true one (10), over 120 runs."""
    rng = np.random.default_rng(7)
    hits = 0
    for run in range(120):
        low, high = bootstrap(correlated(rng, 600, memory), (50,), block, seed=run)[50]
        hits += low <= 10 <= high
    return hits / 120


def test_intervals_hold_the_truth_as_often_as_they_claim() -> None:
    assert coverage(0.0, 1) == pytest.approx(0.95, abs=0.07)


def test_blocks_are_needed_where_neighbours_resemble_each_other() -> None:
    assert coverage(0.8, 1) < 0.75
    assert coverage(0.8, 30) > 0.83


def test_failures_make_a_bound_infinite_and_never_nan() -> None:
    values = np.where(np.arange(400) % 11 == 0, np.inf, 1.0)
    bounds = bootstrap(values, (50, 90), 4)
    assert bounds[50] == (1.0, 1.0)
    assert bounds[90][1] == np.inf
    assert not any(np.isnan(bound) for pair in bounds.values() for bound in pair)


def test_too_few_blocks_give_no_interval() -> None:
    assert bootstrap(np.ones(19), (50,), 4) == {}
    assert block_length(3.0) == 6
    assert block_length(0.01) == 1
    assert block_length(500.0) == 1000


def test_a_paired_difference_is_found_below_the_noise_of_either_side() -> None:
    rng = np.random.default_rng(1)
    a = rng.lognormal(0, 1, 2000)
    b = a + 0.02 + rng.normal(0, 0.05, 2000)
    mean, low, high = paired_difference(b - a, 5)
    assert mean == pytest.approx(0.02, abs=0.005)
    assert low > 0.01
    assert high < 0.03
    mean, low, high = paired_difference(rng.normal(0, 0.05, 2000), 5)
    assert low < 0 < high


def test_the_transient_at_the_front_is_cut() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(1.0, 0.05, 400)
    values[:60] += np.linspace(2, 0.3, 60)
    assert 50 <= mser(values) <= 90
    found = steady_state(np.arange(400, dtype=np.float64), values, 4)
    assert found.found
    assert not found.growing
    assert 50 <= found.num_discarded <= 90
    assert found.from_s == found.num_discarded
    # Nothing to cut: nearly nothing is.
    assert mser(rng.normal(1.0, 0.05, 400)) <= 100


def test_a_queue_that_grows_is_told_from_one_that_does_not() -> None:
    rng = np.random.default_rng(3)
    times: Values = np.arange(300, dtype=np.float64)
    growing = steady_state(times, 0.5 + 0.01 * times + rng.normal(0, 0.05, 300), 4)
    assert growing.growing
    noisy = correlated(rng, 300, 0.8)
    assert not steady_state(times, noisy, 20).growing
    failing = np.where(times > 150, np.inf, 1.0)
    assert steady_state(times, failing, 4).growing is False  # constant where it is finite


def test_few_requests_are_taken_as_they_are() -> None:
    found = steady_state(np.arange(5, dtype=np.float64), np.ones(5), 1)
    assert (found.num_discarded, found.found, found.growing) == (0, True, False)
