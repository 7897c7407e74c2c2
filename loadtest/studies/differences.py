"""Paired differences of two endpoints, and their verdict. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loadtest.client.records import SUCCEEDED, Records
from loadtest.judging.clusters import Labels, bounds_of, cluster_block, clustered_difference
from loadtest.judging.drift import student_quantile
from loadtest.judging.intervals import (
    MIN_BLOCKS,
    block_length,
    correlated_block,
    paired_difference,
)
from loadtest.judging.latency import Values, tpot_s
from loadtest.judging.statistics import mean_in_flight
from loadtest.studies.schema import METRICS, SIDES, ComparedScenario, Difference
from tuneline.core.statistics import Z_95
from tuneline.core.verdict import Verdict

Rows = NDArray[np.int64]
FAR = 2**40
"""More than the number of any session."""


def answer_tokens(pairs: Sequence[tuple[Records, Records]]) -> tuple[float, float] | None:
    """Return the mean output tokens of A and of B, of the requests that both answered; None if
    the server does not say."""
    left, right = [], []
    for a, b in pairs:
        rows_a, rows_b = _both_answered(a, b)
        left.append(a.tokens[rows_a])
        right.append(b.tokens[rows_b])
    tokens = np.stack([np.concatenate(left), np.concatenate(right)])
    tokens = tokens[:, ~np.isnan(tokens).any(axis=0)]
    return (float(tokens[0].mean()), float(tokens[1].mean())) if tokens.size else None


def _both_answered(a: Records, b: Records) -> tuple[Rows, Rows]:
    """Return the rows of the measured requests that succeeded on both sides."""
    _, rows_a, rows_b = np.intersect1d(a.index, b.index, return_indices=True)
    keep = (a.state[rows_a] == SUCCEEDED) & (b.state[rows_b] == SUCCEEDED) & ~a.warmup[rows_a]
    return rows_a[keep], rows_b[keep]


def differences(pairs: Sequence[tuple[Records, Records]], margin: float) -> list[Difference]:
    """Return the paired differences of requests with the same index, over all rounds.

    The turns of a conversation depend on each other. Where there are conversations, whole
    conversations are drawn, and the time that they wait is compared as well.
    """
    has_turns = any(bool(np.any(one.turn > 0)) for pair in pairs for one in pair)
    metrics = (*METRICS, "session_wait_s") if has_turns else METRICS
    found = [_difference(pairs, metric, margin, has_turns) for metric in metrics]
    return [one for one in found if one is not None]


def _difference(
    pairs: Sequence[tuple[Records, Records]], metric: str, margin: float, has_turns: bool
) -> Difference | None:
    """Return the paired differences of one metric; None without a pair."""
    left, right, labels, overlap = [], [], [], 1.0
    for number, (a, b) in enumerate(pairs):
        values = _waits(a, b) if metric == "session_wait_s" else _requests(a, b, metric)
        left.append(values[0])
        right.append(values[1])
        # A session of another round is another session.
        labels.append(values[2] + number * FAR)
        overlap = max(overlap, mean_in_flight(a) or 1.0, mean_in_flight(b) or 1.0)
    values_a, values_b = np.concatenate(left), np.concatenate(right)
    if not len(values_a):
        return None
    # A queue near saturation remembers longer than its requests run, on either side for itself.
    gaps, block = values_b - values_a, block_length(overlap)
    num_clusters = None
    if has_turns:
        of_pairs = np.concatenate(labels)
        num_clusters = len(bounds_of(of_pairs)[0])
        length = math.ceil(block * num_clusters / len(values_a))
        drawn = max(min(cluster_block(gaps, of_pairs, block), num_clusters // MIN_BLOCKS), length)
        interval = clustered_difference(gaps, of_pairs, drawn)
        num_blocks = num_clusters / drawn
        num_needed = math.ceil(MIN_BLOCKS * length * len(values_a) / num_clusters)
        enough = num_clusters >= MIN_BLOCKS * length
    else:
        drawn = max(min(correlated_block(gaps, block), len(gaps) // MIN_BLOCKS), block)
        interval = paired_difference(gaps, drawn)
        num_blocks = len(gaps) / drawn
        num_needed = MIN_BLOCKS * block
        enough = len(values_a) >= num_needed
    mean, low, high = _of_few_blocks(*interval, num_blocks)
    mean_a = float(np.mean(values_a))
    return Difference(
        metric=metric,
        unit="s",
        num_pairs=len(values_a),
        num_conversations=num_clusters,
        mean_a=mean_a,
        mean_b=float(np.mean(values_b)),
        difference=mean,
        ci95_low=low,
        ci95_high=high,
        verdict=judge_difference(low, high, margin * mean_a, enough),
        num_needed=None if enough else num_needed,
    )


def _of_few_blocks(
    mean: float, low: float, high: float, num_blocks: float
) -> tuple[float, float, float]:
    """Return a mean with its interval, widened as Student's t is to the normal distribution: a
    bootstrap of few blocks knows little of the spread between them."""
    factor = student_quantile(max(num_blocks - 1, MIN_BLOCKS - 2)) / Z_95
    return mean, mean - factor * (mean - low), mean + factor * (high - mean)


Pairs = tuple[Values, Values, Labels]
"""The values of A and of B, and the session of each."""


def _requests(a: Records, b: Records, metric: str) -> Pairs:
    """Return a metric of the requests that both answered, ordered by session and turn."""
    rows_a, rows_b = _both_answered(a, b)
    values_a, values_b = _values(a, metric)[rows_a], _values(b, metric)[rows_b]
    both = ~np.isnan(values_a) & ~np.isnan(values_b)
    return values_a[both], values_b[both], a.session[rows_a][both]


def _waits(a: Records, b: Records) -> Pairs:
    """Return the time that each conversation waits for its answers, if both sides answered the
    same turns and no turn failed."""
    sides = []
    for one in (a, b):
        rows = one.select(~one.warmup)
        starts, sizes = bounds_of(rows.session)
        if not len(starts):
            return np.zeros(0), np.zeros(0), np.zeros(0, np.int64)
        waits = np.where(rows.state == SUCCEEDED, rows.last_token_s - rows.intended_s, np.nan)
        sides.append((rows.session[starts], sizes, np.add.reduceat(waits, starts)))
    (of_a, sizes_a, waits_a), (of_b, sizes_b, waits_b) = sides
    sessions, rows_a, rows_b = np.intersect1d(of_a, of_b, return_indices=True)
    kept = sizes_a[rows_a] == sizes_b[rows_b]
    kept &= ~np.isnan(waits_a[rows_a]) & ~np.isnan(waits_b[rows_b])
    return waits_a[rows_a][kept], waits_b[rows_b][kept], sessions[kept]


def _values(records: Records, metric: str) -> Values:
    if metric == "ttft_s":
        # A vector or a score comes whole: it has no first token.
        return np.where(records.tokens == 0, np.nan, records.first_token_s - records.intended_s)
    if metric == "e2e_s":
        return records.last_token_s - records.intended_s
    return tpot_s(records)


def judge_difference(
    low: float, high: float, margin: float, enough: bool
) -> Literal["slower", "faster", "no difference", "unclear"]:
    """Return the verdict of a difference by its interval; unclear without enough pairs."""
    if not enough:
        return "unclear"
    if low > margin:
        return "slower"
    if high < -margin:
        return "faster"
    return "no difference" if high <= margin else "unclear"


def judge_comparison(
    scenarios: Sequence[ComparedScenario], margin: float
) -> tuple[Verdict, list[str]]:
    """Return the verdict of a comparison, and why it is not PASS.

    FAIL: B is slower by more than the margin, or loses more requests. INCONCLUSIVE: a difference is
    unclear, or the answers have different lengths. INVALID: a run is, or there is nothing to
    compare; this ends the list.
    """
    problems: list[str] = []
    verdict: Verdict = Verdict.PASS
    for scenario in scenarios:
        name = scenario.name
        for difference in scenario.differences:
            text = (
                f"{name}: {difference.metric}: B - A is {difference.difference * 1e3:+.2f} ms "
                f"({difference.ci95_low * 1e3:+.2f} to {difference.ci95_high * 1e3:+.2f}, "
                f"N = {difference.num_pairs})"
            )
            if difference.verdict == "slower":
                problems.append(text)
                verdict = Verdict.FAIL
            elif difference.verdict == "unclear":
                needed = difference.num_needed
                few = f"; a verdict needs at least {needed} pairs" if needed else ""
                problems.append(f"{text}: unclear{few}")
                verdict = Verdict.INCONCLUSIVE if verdict == Verdict.PASS else verdict
        tokens = scenario.answer_tokens
        if tokens is None and scenario.differences:
            problems.append(
                f"{name}: the answers carry no usage on A or on B: whether their times are of the "
                "same work is not known"
            )
            verdict = Verdict.INCONCLUSIVE if verdict == Verdict.PASS else verdict
        if tokens and abs(tokens[1] - tokens[0]) > margin * tokens[0]:
            problems.append(
                f"{name}: answers have {tokens[0]:.4g} tokens on A and {tokens[1]:.4g} on B, so "
                "their times are not of the same work (loadtest.ignore_eos: true makes them)"
            )
            verdict = Verdict.INCONCLUSIVE if verdict == Verdict.PASS else verdict
        lost_a, lost_b = (
            sum(run.requests.failed + run.requests.unfinished for run in scenario.runs[side])
            for side in SIDES
        )
        if lost_b > lost_a:
            problems.append(f"{name}: {lost_b} requests of B failed or did not end; {lost_a} of A")
            verdict = Verdict.FAIL
        if not scenario.differences:
            problems.append(f"{name}: no request succeeded on both sides")
            return Verdict.INVALID, problems
        invalid = [
            run for side in SIDES for run in scenario.runs[side] if run.verdict == Verdict.INVALID
        ]
        if invalid:
            problems += [f"{name}: {problem}" for run in invalid for problem in run.problems]
            return Verdict.INVALID, problems
    return verdict, problems
