"""Intervals and steady state against simulated processes whose truth is known."""

import math

import numpy as np
import pytest

from benchmarks.intervals import shares, times_in_system, true_p90
from loadtest.judging.intervals import (
    MIN_BLOCKS,
    Values,
    autocorrelation_time,
    block_length,
    bootstrap,
    correlated_block,
    lies_below,
    num_to_tell_share,
    paired_difference,
)
from loadtest.judging.latency import distribution, share_of
from loadtest.judging.objectives import latency_objective
from loadtest.judging.steady_state import mser, steady_state
from tuneline.core.statistics import wilson_interval


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


def intervals(
    servers: int, load: float, count: int, runs: int, *, own: bool = True
) -> tuple[float, float]:
    """Shares of the runs whose interval of p90 holds the truth, and whose does not."""
    rng = np.random.default_rng(5)
    truth = true_p90(servers, load)
    right = wrong = 0
    for run in range(runs):
        values = times_in_system(rng, count, servers, load)
        block = block_length(float(values.mean()) * load * servers)
        block = correlated_block(values, block) if own else block
        found = bootstrap(values, (90,), block, seed=run)
        if found:
            low, high = found[90]
            right += low <= truth <= high
            wrong += not low <= truth <= high
    return right / runs, wrong / runs


def test_true_percentiles_of_queues_are_right() -> None:
    assert true_p90(1, 0.8) == pytest.approx(math.log(10) / 0.2)
    rng = np.random.default_rng(1)
    assert np.quantile(times_in_system(rng, 200_000, 4, 0.6), 0.9) == pytest.approx(
        true_p90(4, 0.6), rel=0.02
    )


def test_a_queue_that_is_seldom_full_has_intervals_that_hold_its_percentile() -> None:
    found = [intervals(*queue, 300, 60) for queue in ((1, 0.4), (8, 0.6), (8, 0.7))]
    right, wrong = np.mean(found, axis=0)
    print(f"light queues: {right:.2f} right, {wrong:.2f} wrong")
    assert right / (right + wrong) >= 0.85
    assert right + wrong >= 0.6


@pytest.mark.parametrize(("servers", "load"), [(1, 0.8), (8, 0.9), (4, 0.8)])
def test_a_queue_near_saturation_is_seldom_given_a_wrong_interval(
    servers: int, load: float
) -> None:
    _, before = intervals(servers, load, 300, 40, own=False)
    right, wrong = intervals(servers, load, 300, 40)
    print(f"M/M/{servers} {load}: wrong in {before:.2f} with blocks of 2 L, {wrong:.2f} now")
    assert before > 0.4
    assert wrong <= 0.25
    longer, _ = intervals(servers, load, 10_000, 6)
    assert longer >= right


def test_a_percentile_far_below_its_limit_needs_no_interval() -> None:
    # One value lies below a fiftieth of a limit that is p90 with 1 - 0.1^0.02 = 4.5 %.
    assert lies_below(0.02, 1.0, 90, 1) and not lies_below(0.03, 1.0, 90, 1)
    # Four: (1 - 0.1^0.25)^4 = 3.7 %; and (1 - 0.1^0.3)^4 = 6.2 %.
    assert lies_below(0.25, 1.0, 90, 4) and not lies_below(0.3, 1.0, 90, 4)
    # Two of three at least lie below the median: 3 f^2 - 2 f^3 at f = 1 - 0.5^0.2 = 4.6 %.
    assert lies_below(0.2, 1.0, 50, 3) and not lies_below(0.25, 1.0, 50, 3)
    assert not lies_below(1.0, 1.0, 90, 1000)


def test_a_percentile_far_below_its_limit_is_so_for_any_number_of_values() -> None:
    # 9,000 of 10,000 at least, each with probability 0.88: never. At 0.9: about half of the time.
    assert lies_below(math.log(0.12) / math.log(0.1), 1.0, 90, 10_000)
    assert not lies_below(0.9999, 1.0, 90, 10_000)
    assert lies_below(0.0, 1.0, 90, 1) and not lies_below(0.0, 0.0, 90, 1)
    assert lies_below(1e-9, 1.0, 99, 10_000) and lies_below(0.1, 1e20, 50, 3)


@pytest.mark.parametrize(
    ("servers", "load", "most"), [(1, 0.5, 0.1), (8, 0.7, 0.15), (1, 0.8, 0.25), (8, 0.9, 0.25)]
)
def test_queues_seldom_pass_or_fail_an_objective_at_the_truth(
    servers: int, load: float, most: float
) -> None:
    found = {count: shares(servers, load, count, 40) for count in (300, 3000)}
    print(f"M/M/{servers} {load}: {found}")
    assert found[300]["pass_at_truth"] <= most
    assert found[3000]["pass_at_truth"] <= 0.15
    for count in (300, 3000):
        assert found[count]["fail_at_truth"] <= 0.1
        assert found[count]["pass_at_1.5"] >= 0.1
    assert found[3000]["fail_at_0.67"] >= 0.5


@pytest.mark.parametrize(
    ("share", "slow_s", "q", "n"),
    [(0.105, math.inf, 90, 300), (0.52, 5.0, 50, 300), (0.012, 30.0, 99, 1000)],
)
def test_what_is_fast_or_slow_seldom_passes_an_objective_that_it_misses(
    share: float, slow_s: float, q: int, n: int
) -> None:
    # Failures, retries, a cache: no tail of a queue. Too many lie above the limit of 1 s.
    rng = np.random.default_rng(8)
    passed = 0
    for _ in range(200):
        values = np.where(rng.random(n) < share, slow_s, 0.1)
        within = share_of(values <= 1.0, values)
        passed += (
            latency_objective("ttft_s", q, 1.0, distribution(values), within).verdict == "PASS"
        )
    print(f"{share} at {slow_s} s: {passed} of 200 pass")
    assert passed <= 10


def test_failures_are_a_series_with_a_memory_though_the_median_is_infinite() -> None:
    values = np.where(np.arange(600) % 200 < 120, math.inf, 0.1)
    assert autocorrelation_time(values) > 10


@pytest.mark.parametrize(("memory", "time"), [(0.0, 1.0), (0.5, 3.0)])
def test_series_with_short_memory_have_their_intervals_at_300_requests(
    memory: float, time: float
) -> None:
    rng = np.random.default_rng(3)
    blocks = [correlated_block(correlated(rng, 300, memory), 4) for _ in range(40)]
    assert np.mean([MIN_BLOCKS * block <= 300 for block in blocks]) >= 0.85
    long = correlated(rng, 50_000, memory)
    assert time == (1 + memory) / (1 - memory)
    assert autocorrelation_time(long) == pytest.approx(time, rel=0.15)


def test_blocks_are_as_long_as_a_series_remembers() -> None:
    rng = np.random.default_rng(3)
    few = [correlated_block(rng.normal(0, 1, 40), 4) for _ in range(40)]
    assert np.mean([block == 4 for block in few]) >= 0.9
    assert correlated_block(np.ones(300), 4) == 4
    drift = np.linspace(0, 1, 300)
    assert correlated_block(10 + drift, 4) == 4
    assert correlated_block(10 + 5 * drift, 4) > 300 / MIN_BLOCKS
    assert correlated_block(rng.normal(0, 1, 300), 100) == 100


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


@pytest.mark.parametrize(("share", "limit"), [(0.0, 0.01), (0.05, 0.1), (0.2, 0.1)])
def test_as_many_trials_as_are_needed_tell_a_share_from_a_limit(share: float, limit: float) -> None:
    needed = num_to_tell_share(share, limit)
    assert needed is not None
    enough = math.ceil(needed / 20) * 20  # the share of so many is a whole number
    for total, tells in ((enough, True), (enough - 40, False)):
        low, high = wilson_interval(round(share * total) / max(total, 1), total)
        assert (limit < low or high <= limit) is tells


@pytest.mark.parametrize("block", [1, 7])
def test_an_interval_does_not_depend_on_how_many_blocks_are_drawn_at_once(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal(size=400)
    whole = paired_difference(values, block)
    monkeypatch.setattr("loadtest.judging.intervals.MAX_DRAWN", 1000)
    assert paired_difference(values, block) == whole
