"""How sure a figure is if its values come in clusters: the turns of one session. Pure.

Turns of a session share its prompt, its length and its time, so they are not independent. The
cluster bootstrap draws whole sessions (Field and Welsh, Journal of the Royal Statistical Society B
69, 2007). Sessions that overlap depend on each other as well, so runs of neighbouring sessions are
drawn, as the moving-block bootstrap does with requests (Künsch, Annals of Statistics 17, 1989).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadtest.judging.intervals import (
    MIN_BLOCKS,
    NUM_RESAMPLES,
    TIMES_PER_BLOCK,
    Values,
    autocorrelation_time,
    bounds_by_percentile,
    correlated_block,
    ranks,
)

Labels = NDArray[np.int64]


def bounds_of(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row and the number of rows of each cluster; rows of one are neighbours."""
    if not len(labels):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.flatnonzero(np.concatenate(([True], labels[1:] != labels[:-1])))
    return starts, np.diff(np.append(starts, len(labels)))


def cluster_block(values: Values, labels: Labels, block: int) -> int:
    """Return how many neighbouring clusters to draw together.

    Args:
        block: The least number of rows in a block.
    """
    starts, sizes = bounds_of(labels)
    least = max(1, math.ceil(block / float(np.mean(sizes))))
    means = np.add.reduceat(ranks(values), starts) / sizes
    return correlated_block(means, least)


def cluster_bootstrap(
    values: Values, labels: Labels, percentiles: Sequence[float], block: int, *, seed: int = 0
) -> dict[float, tuple[float, float]]:
    """Return 95 % intervals of percentiles by drawing blocks of `block` neighbouring clusters.

    Infinite values make a bound infinite if they reach it. The result is empty if there are
    fewer than MIN_BLOCKS blocks.
    """
    starts, sizes = bounds_of(labels)
    count = len(starts)
    if count < MIN_BLOCKS * block:
        return {}
    rng = np.random.default_rng(seed)
    num_blocks = -(-count // block)
    offsets = np.arange(block)
    drawn = np.empty((NUM_RESAMPLES, len(percentiles)))
    for number in range(NUM_RESAMPLES):
        firsts = rng.integers(0, count - block + 1, num_blocks)
        clusters = (firsts[:, None] + offsets).ravel()[:count]
        lengths = sizes[clusters]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        resampled = values[np.repeat(starts[clusters], lengths) + within]
        last = len(resampled) - 1
        places = [min(math.ceil(round(last * q / 100, 9)), last) for q in percentiles]
        drawn[number] = np.partition(resampled, places)[places]
    return bounds_by_percentile(drawn, percentiles)


def clustered_difference(
    differences: Values, labels: Labels, block: int
) -> tuple[float, float, float]:
    """Return the mean of paired differences with its 95 % interval, by drawing blocks of `block`
    neighbouring clusters."""
    starts, sizes = bounds_of(labels)
    count = len(starts)
    block = max(1, min(block, count))
    sums = np.concatenate(([0.0], np.cumsum(np.add.reduceat(differences, starts))))
    ends = np.concatenate(([0], np.cumsum(sizes)))
    rng = np.random.default_rng(0)
    firsts = rng.integers(0, count - block + 1, (2000, -(-count // block)))
    totals = (sums[firsts + block] - sums[firsts]).sum(axis=1)
    means = totals / (ends[firsts + block] - ends[firsts]).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean(differences)), float(low), float(high)


def design_effect(values: Values, labels: Labels) -> float:
    """Return how many clustered values count as one independent value, and no less than 1.

    The variance of their mean by the totals of the clusters, over the variance of independent
    values (Kish, Survey Sampling, 1965).
    """
    starts, _ = bounds_of(labels)
    count, num_clusters = len(values), len(starts)
    variance = float(np.var(values))
    if num_clusters < 2 or variance == 0:
        return 1.0
    totals = np.add.reduceat(values - values.mean(), starts)
    between = num_clusters / (num_clusters - 1) * float(np.sum(totals**2)) / count**2
    return max(between / (variance / count), 1.0)


def num_independent(
    hits: NDArray[np.bool_], decisive: Sequence[tuple[Values, Labels]], labels: Labels, block: int
) -> tuple[float, int]:
    """Return as how many independent requests clustered hits count, and how many requests it takes.

    Args:
        hits: One per request.
        decisive: Latencies that decide the hits, with their clusters: hits depend on each other as
            the latencies do, even if all hits are equal.
        labels: The cluster of each hit.
        block: The least number of rows in a block.
    """
    starts, sizes = bounds_of(labels)
    count, num_clusters = len(hits), len(starts)
    effects = [design_effect(hits.astype(np.float64), labels)]
    times = [_time(hits.astype(np.float64), labels)]
    for values, of_values in decisive:
        if len(values):
            effects.append(design_effect(ranks(values), of_values))
            times.append(_time(values, of_values))
    mean_size = float(np.mean(sizes))
    block_clusters = max(1, math.ceil(block / mean_size))
    if max(times) > 1:
        block_clusters = max(block_clusters, math.ceil(TIMES_PER_BLOCK * max(times)))
    share = min(TIMES_PER_BLOCK / block_clusters, 1.0)
    needed = math.ceil(MIN_BLOCKS * block_clusters * mean_size)
    return min(count / max(effects) * share, num_clusters * mean_size), needed


def _time(values: Values, labels: Labels) -> float:
    starts, sizes = bounds_of(labels)
    return autocorrelation_time(np.add.reduceat(ranks(values), starts) / sizes)
