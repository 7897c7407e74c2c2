"""Intervals of clustered values: their coverage against simulated sessions of known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loadtest.judging.clusters import (
    bounds_of,
    cluster_block,
    cluster_bootstrap,
    clustered_difference,
    design_effect,
    num_independent,
)
from loadtest.judging.intervals import bootstrap, paired_difference, ranks
from loadtest.judging.latency import distribution, share_of, share_of_clustered


def sessions(
    num: int, turns: int, share: float, rng: np.random.Generator
) -> tuple[Any, np.ndarray[Any, Any]]:
    """Values of sessions: a share of the variance is the session's own; the true median is 1."""
    own = rng.normal(0, np.sqrt(share), num)
    values = 1 + np.repeat(own, turns) + rng.normal(0, np.sqrt(1 - share), num * turns)
    return values, np.repeat(np.arange(num), turns)


def test_bounds_are_the_runs_of_a_label() -> None:
    starts, sizes = bounds_of(np.array([4, 4, 7, 9, 9, 9]))
    assert (starts.tolist(), sizes.tolist()) == ([0, 2, 3], [2, 1, 3])
    assert [len(one) for one in bounds_of(np.zeros(0, np.int64))] == [0, 0]


def test_ranks_keep_infinite_values_in_their_place() -> None:
    assert ranks(np.array([3.0, np.inf, 1.0, 3.0])).tolist() == [2.5, 4.0, 1.0, 2.5]


def test_intervals_of_clustered_values_cover_the_truth() -> None:
    """The plain bootstrap of single values is too narrow; the cluster bootstrap is not."""
    rng = np.random.default_rng(5)
    covered = plain = 0
    for seed in range(60):
        values, labels = sessions(40, 6, 0.7, rng)
        low, high = cluster_bootstrap(values, labels, [50], 1, seed=seed)[50]
        covered += low <= 1.0 <= high
        low, high = bootstrap(values, [50], 1, seed=seed)[50]
        plain += low <= 1.0 <= high
    assert covered >= 0.88 * 60
    assert plain <= 0.8 * 60


@pytest.mark.parametrize(("share", "turns"), [(0.0, 5), (0.5, 5), (1.0, 5), (0.5, 1)])
def test_the_design_effect_is_one_plus_the_correlation_of_the_others(
    share: float, turns: int
) -> None:
    """Kish: deff = 1 + (m - 1) rho for clusters of m values with correlation rho."""
    values, labels = sessions(4000, turns, share, np.random.default_rng(1))
    assert design_effect(values, labels) == pytest.approx(1 + (turns - 1) * share, rel=0.1)


def test_a_constant_has_no_design_effect() -> None:
    assert design_effect(np.full(10, 1.0), np.repeat(np.arange(5), 2)) == 1.0
    assert design_effect(np.array([0.0, 1.0, 2.0, 3.0]), np.zeros(4, np.int64)) == 1.0


def test_hits_that_are_all_equal_depend_as_their_latencies_do() -> None:
    values, labels = sessions(200, 5, 1.0, np.random.default_rng(2))
    hits = values < 100
    assert hits.all()
    count, needed = num_independent(hits, [(values, labels)], labels, 1)
    assert count == pytest.approx(200, rel=0.15)
    assert needed == 25
    free, _ = num_independent(hits, [], labels, 1)
    assert free == 1000


def test_shares_of_turns_are_less_sure_than_shares_of_requests() -> None:
    values, labels = sessions(100, 8, 0.9, np.random.default_rng(3))
    hits = values < 1
    clustered = share_of_clustered(hits, labels, (values, labels))
    # The same hits in another order: nothing tells that some are of one session.
    shuffled = share_of(np.random.default_rng(1).permutation(hits))
    assert clustered.value == shuffled.value and clustered.n == shuffled.n == 800
    assert clustered.num_independent < 0.2 * shuffled.num_independent
    assert clustered.ci95[1] - clustered.ci95[0] > 1.8 * (shuffled.ci95[1] - shuffled.ci95[0])
    assert share_of_clustered(np.zeros(0, np.bool_), np.zeros(0, np.int64)).n == 0


def test_a_distribution_of_few_sessions_has_no_interval() -> None:
    values, labels = sessions(4, 50, 0.5, np.random.default_rng(4))
    found = distribution(values, block=1, clusters=labels)
    assert found.ci95 == {} and "sessions are needed" in found.without_interval["p50"]
    many, of_many = sessions(40, 10, 0.5, np.random.default_rng(4))
    assert distribution(many, block=1, clusters=of_many).ci95.keys() == {"p50", "p90", "p99"}


def test_sessions_that_drift_are_drawn_in_longer_blocks() -> None:
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(400), 3)
    steady = rng.normal(1, 1, 1200)
    drifting = steady + np.repeat(np.sin(np.arange(400) / 40), 3) * 3
    assert cluster_block(steady, labels, 1) == 1
    assert cluster_block(drifting, labels, 1) > 20
    assert cluster_block(steady, labels, 30) == 10


def test_infinite_values_make_a_bound_infinite() -> None:
    values, labels = sessions(50, 4, 0.5, np.random.default_rng(7))
    values[-60:] = np.inf
    found = cluster_bootstrap(values, labels, [50, 90], 1)
    assert np.isfinite(found[50][0]) and np.isinf(found[90][1])


def test_differences_of_conversations_have_intervals_that_contain_the_truth() -> None:
    clustered = single = 0
    for seed in range(100):
        values, labels = sessions(60, 8, 0.6, np.random.default_rng(seed))
        mean, low, high = clustered_difference(values, labels, 1)
        assert mean == pytest.approx(values.mean())
        clustered += low <= 1.0 <= high
        _, low, high = paired_difference(values, 1)
        single += low <= 1.0 <= high
    assert clustered >= 90
    # Turns taken as independent say too much.
    assert single < 75
