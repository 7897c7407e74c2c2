"""Per-request latencies, their distributions, and shares of requests. Pure.

docs/metrics.md has the definitions and sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from loadtest.client.records import SUCCEEDED, Records
from loadtest.judging.clusters import (
    Labels,
    cluster_block,
    cluster_bootstrap,
    num_independent,
)
from loadtest.judging.intervals import (
    MIN_BLOCKS,
    TIMES_PER_BLOCK,
    autocorrelation_time,
    bootstrap,
    correlated_block,
    integrated_time,
)
from loadtest.percentiles import name_of, num_needed, reported
from loadtest.report.part import Distribution, Interval, Share
from tuneline.core.statistics import wilson_interval

Values = NDArray[np.float64]


OF_TOKENS = ("ttft_s", "ttft_from_sent_s", "tpot_s", "inter_chunk_gap_s", "worst_gap_s")
"""A document with vectors or scores comes whole: it has none of these."""


def percentile(values: Values, q: float) -> float:
    """Return a percentile, linear between order statistics (numpy's default, type 7 of Hyndman and
    Fan, 1996); infinite if the upper neighbour is infinite."""
    ordered = np.sort(values)
    # Rounded: 1000 * 99.9 / 100 is 999.0000000000001.
    place = round((len(ordered) - 1) * q / 100, 9)
    low = int(np.floor(place))
    weight = place - low
    if weight == 0:
        return float(ordered[low])
    upper = float(ordered[low + 1])
    return upper if np.isinf(upper) else float(ordered[low] + (upper - ordered[low]) * weight)


def distribution(
    values: Values,
    unit: str = "s",
    *,
    withhold: bool = True,
    block: int | None = None,
    clusters: Labels | None = None,
    also: Iterable[float] = (),
) -> Distribution:
    """Return percentiles of values.

    Args:
        values: In the order of their requests; infinite for failed requests.
        withhold: Withhold a percentile that the number of values cannot support. False for values
            that are only described, such as the client's own lags.
        block: The least length of a bootstrap block; without it percentiles have no intervals.
        clusters: The session of each value; intervals then draw whole sessions.
        also: Percentiles next to the reported ones.
    """
    finite = values[np.isfinite(values)]
    found: dict[float, float | None] = {}
    withheld = {}
    for q in reported(also):
        needed = num_needed(q) if withhold else 1
        if len(values) < needed:
            found[q] = None
            withheld[name_of(q)] = f"{len(values)} values; at least {needed} are needed"
            continue
        value = percentile(values, q)
        found[q] = value if np.isfinite(value) else None
        if found[q] is None:
            withheld[name_of(q)] = INFINITE
    shown = [q for q in found if found[q] is not None]
    ci95, without = _intervals(values, shown, block, clusters)
    return Distribution(
        unit=unit,
        n=len(values),
        mean_of_succeeded=float(np.mean(finite)) if len(finite) else None,
        max_of_succeeded=float(np.max(finite)) if len(finite) else None,
        percentiles={name_of(q): value for q, value in found.items()},
        withheld=withheld,
        ci95=ci95,
        without_interval=without,
    )


INFINITE = "infinite: too many requests failed"


def _intervals(
    values: Values, shown: list[float], block: int | None, clusters: Labels | None
) -> tuple[dict[str, Interval], dict[str, str]]:
    """Return the intervals of the shown percentiles, and why the others have none."""
    if block is None or not shown:
        return {}, {}
    if clusters is None:
        block = correlated_block(values, block)
        found = bootstrap(values, shown, block)
    else:
        block = cluster_block(values, clusters, block)
        found = cluster_bootstrap(values, clusters, shown, block)
    ci95: dict[str, Interval] = {}
    for q, bounds in found.items():
        low, high = (bound if np.isfinite(bound) else None for bound in bounds)
        ci95[name_of(q)] = (low, high)
    reason = (
        f"no interval from {len(values)} values that depend on their neighbours as these do; at "
        f"least {MIN_BLOCKS * block}{'' if clusters is None else ' sessions'} are needed"
    )
    return ci95, {name_of(q): reason for q in shown if name_of(q) not in ci95}


def latency_values(records: Records) -> dict[str, Values]:
    """Return seconds per request (per gap for `inter_chunk_gap_s`), infinite for failed requests.

    `ttft_s` and `e2e_s` count from the intended time, `*_from_sent_s` from the sent time.
    """
    # An answer of one token has no TPOT and no gap.
    return {name: value[~np.isnan(value)] for name, value in raw_values(records).items()}


def latency_sessions(records: Records) -> dict[str, Labels]:
    """Return the session of each of the `latency_values`, except for gaps."""
    return {
        name: records.session[~np.isnan(value)]
        for name, value in raw_values(records).items()
        if name != "inter_chunk_gap_s"
    }


def raw_values(records: Records) -> dict[str, Values]:
    """Return seconds per request; NaN for a request without the metric."""
    ok = records.state == SUCCEEDED

    def since(start: Values, end: Values) -> Values:
        # A request without an end counts as infinitely slow.
        return np.where(ok & ~np.isnan(end), end - start, np.inf)

    return {
        "ttft_s": since(records.intended_s, records.first_token_s),
        "ttft_from_sent_s": since(records.sent_s, records.first_token_s),
        "tpot_s": tpot_s(records),
        "inter_chunk_gap_s": gaps_s(records),
        "worst_gap_s": _worst_gaps_s(records),
        "e2e_s": since(records.intended_s, records.last_token_s),
        "e2e_from_sent_s": since(records.sent_s, records.last_token_s),
    }


def tpot_s(records: Records) -> Values:
    """Return (t_last - t_first) / (N - n_first) per request; NaN if N <= n_first."""
    first = records.first_tokens
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_per_event = records.tokens / records.num_events
        rest = records.tokens - np.where(np.isnan(first), mean_per_event, first)
        values = (records.last_token_s - records.first_token_s) / np.where(rest > 0, rest, np.nan)
    result: Values = np.where(records.state == SUCCEEDED, values, np.inf)
    return result


def gaps_s(records: Records) -> Values:
    """Return the pooled times between the token events of each succeeded request."""
    gaps, owners = _gaps(records)
    result: Values = gaps[(records.state == SUCCEEDED)[owners]]
    return result


def _gaps(records: Records) -> tuple[Values, NDArray[np.int64]]:
    owners: NDArray[np.int64] = np.repeat(np.arange(len(records)), records.num_events)
    within = owners[1:] == owners[:-1]
    return np.diff(records.event_s)[within], owners[1:][within]


def _worst_gaps_s(records: Records) -> Values:
    gaps, owners = _gaps(records)
    worst = np.full(len(records), -np.inf)
    np.maximum.at(worst, owners, gaps)
    worst = np.where(np.isinf(worst), np.nan, worst)
    result: Values = np.where(records.state == SUCCEEDED, worst, np.inf)
    return result


def share_of_clustered(
    hits: NDArray[np.bool_],
    labels: Labels,
    *decisive: tuple[Values, Labels],
    block: int = 1,
) -> Share:
    """Return the share of hits among requests of sessions, with its interval.

    Args:
        hits: One per request.
        labels: The session of each request.
        decisive: See `share_of`; each with the session of its values.
        block: The least number of requests in a block of neighbouring sessions.
    """
    if not len(hits):
        return share_of(hits)
    count, needed = num_independent(hits, decisive, labels, block)
    share = float(np.mean(hits))
    return Share(
        value=share,
        n=len(hits),
        num_independent=count,
        ci95=wilson_interval(share, count),
        num_needed=needed,
    )


def share_of(hits: NDArray[np.bool_], *decisive: Values, block: int = 1) -> Share:
    """Return the share of hits among requests in their order, with its interval.

    Args:
        hits: One per request.
        decisive: Latencies that decide the hits. Hits depend on one another as the latencies do,
            even if all hits are equal.
        block: The least length of a block of neighbours; a block counts as TIMES_PER_BLOCK.
    """
    n = len(hits)
    if not n:
        return Share(
            value=0.0,
            n=0,
            num_independent=0.0,
            ci95=wilson_interval(0.0, 0),
            num_needed=MIN_BLOCKS,
        )
    times = [autocorrelation_time(values) for values in decisive if len(values)]
    time = max(integrated_time(hits.astype(np.float64)), *times, 1.0)
    if time > 1:
        block = max(block, math.ceil(TIMES_PER_BLOCK * time))
    num_independent = min(TIMES_PER_BLOCK * n / block, n)
    share = float(np.mean(hits))
    interval = wilson_interval(share, num_independent)
    return Share(
        value=share,
        n=n,
        num_independent=num_independent,
        ci95=interval,
        num_needed=MIN_BLOCKS * block,
    )
