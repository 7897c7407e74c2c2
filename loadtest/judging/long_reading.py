"""Two passes over the records of a long run, in fixed memory.

The first pass finds the window, the second fills the blocks (`blocks.py`) and counts what no block
needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loadtest.client.records import CANCELLED, FAILED, STATES, SUCCEEDED, UNFINISHED, Records
from loadtest.client.records import join_records as join
from loadtest.config import SLO
from loadtest.histogram import Histogram, percentile
from loadtest.judging.blocks import Blocks, Grid, make_grid
from loadtest.judging.latency import gaps_s
from loadtest.judging.window import Window, find_window

Values = NDArray[np.float64]
Batches = Callable[[], Iterator[Records]]

MAX_SAMPLE = 10_000
"""Whole requests that are kept for the plots."""


@dataclass
class LongRun:
    """Figures from the passes over a file of records, next to the blocks."""

    slo: SLO
    arrivals_s: Values | None = None
    """Of an open loop: when each request was to be sent, by index, warm-up included."""
    begun: NDArray[np.bool_] | None = None
    """Of an open loop: which of them have a record."""
    num_rows: int = 0
    num_warmup: int = 0
    first_s: float = math.inf
    last_s: float = -math.inf
    first_end_s: float = math.inf
    last_end_s: float = -math.inf
    in_system_s: float = 0.0
    """Sum of the times from due to end. It and the ends leave out warm-up and clients that left."""
    lengths: Histogram = field(default_factory=Histogram)
    """Seconds from due to end of the same requests."""
    window: Window | None = None
    """None if no measured request was due."""
    states: Values = field(default_factory=lambda: np.zeros(len(STATES)))
    """Requests in each of STATES, without warm-up."""
    errors: dict[str, int] = field(default_factory=dict)
    retry_after_s: set[float] = field(default_factory=set)
    num_resent: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """The integer fields of `Tokens`."""
    has_cached: bool = False
    gaps: Histogram = field(default_factory=Histogram)
    send_lag: Histogram = field(default_factory=Histogram)
    connect_wait: Histogram = field(default_factory=Histogram)
    scheduled_s: list[Values] = field(default_factory=list)
    """Of an open loop: arrivals that the client sent, or was to send and did not."""
    ready_s: list[Values] = field(default_factory=list)
    """Of an open loop only: see `Records.ready_s`."""
    num_tokens: float = 0.0
    """By usage, warm-up included; the two sums next count the same requests."""
    num_ok: int = 0
    ttft_sum_s: float = 0.0
    e2e_sum_s: float = 0.0
    num_left: int = 0
    num_left_events: int = 0
    left_ttft: Histogram = field(default_factory=Histogram)
    sample: list[Records] = field(default_factory=list)
    stride: int = 1

    def totals(self) -> dict[str, float | None]:
        """Return the client's figures that the server has, too."""
        found: dict[str, float | None] = {"generation_tokens": self.num_tokens}
        if self.num_ok:
            found["mean_ttft_s"] = self.ttft_sum_s / self.num_ok
            found["mean_e2e_s"] = self.e2e_sum_s / self.num_ok
        return found


def read_long_run(
    batches: Batches,
    slo: SLO,
    *,
    asked: Callable[[Records], Values | None],
    duration_s: float | None,
    arrivals_s: Sequence[float] | None = None,
) -> tuple[LongRun, Blocks | None]:
    """Read the records of a run twice; return what they show.

    Args:
        batches: Returns the records from the begin, in any order, a few thousand at a time.
        asked: Returns the tokens that each answer must have; None if answers end by themselves.
        duration_s: The scenario's measured duration, if it has one.
        arrivals_s: Of an open loop: when each request was to be sent, by index.
    """
    run = LongRun(slo)
    if arrivals_s is not None:
        run.arrivals_s = np.asarray(arrivals_s, np.float64)
        run.begun = np.zeros(len(run.arrivals_s), np.bool_)
    for records in batches():
        _note_times(run, records)
    grid = _grid(run, duration_s)
    blocks = None if grid is None else Blocks(grid, slo)
    for records in batches():
        _note_requests(run, records, asked)
        if blocks is not None:
            blocks.add(records)
    return run, blocks


def _note_times(run: LongRun, records: Records) -> None:
    run.num_rows += len(records)
    due = records.intended_s[~records.warmup]
    if len(due):
        run.first_s = min(run.first_s, float(due.min()))
        run.last_s = max(run.last_s, float(due.max()))
    if run.begun is not None:
        run.begun[records.index] = True
    ended = ~np.isnan(records.end_s) & ~records.warmup & (records.state != CANCELLED)
    lengths = (records.end_s - records.intended_s)[ended]
    run.lengths.add(lengths)
    run.in_system_s += float(np.sum(lengths))
    if ended.any():
        run.first_end_s = min(run.first_end_s, float(records.intended_s[ended].min()))
        run.last_end_s = max(run.last_end_s, float(records.end_s[ended].max()))


def _grid(run: LongRun, duration_s: float | None) -> Grid | None:
    if not math.isfinite(run.first_s):
        return None
    num_ended = run.lengths.num_values
    arrivals_s = run.arrivals_s
    run.window = find_window(
        first_s=run.first_s if arrivals_s is None else float(arrivals_s[0]),
        start_s=run.first_s,
        end_s=run.last_s if duration_s is None else run.first_s + duration_s,
        last_end_s=run.last_end_s,
        median_s=percentile(run.lengths.counts, 50) if num_ended else None,
        is_open=arrivals_s is not None,
    )
    return make_grid(run.window, run.in_system_s / max(num_ended, 1))


def _note_requests(
    run: LongRun, records: Records, asked: Callable[[Records], Values | None]
) -> None:
    whole = ~records.warmup
    run.num_warmup += int(np.sum(records.warmup))
    run.states += np.bincount(records.state[whole], minlength=len(STATES))
    failed = whole & (records.state == FAILED)
    names, counts = np.unique(records.error[failed], return_counts=True)
    for name, count in zip(names, counts, strict=True):
        run.errors[str(name)] = run.errors.get(str(name), 0) + int(count)
    run.retry_after_s |= set(records.retry_after_s[~np.isnan(records.retry_after_s)].tolist())
    ok = whole & (records.state == SUCCEEDED)
    run.num_resent += int(np.sum(records.resent & ok))
    stayed = whole & (records.state != CANCELLED)
    measured = records.select(stayed)
    run.gaps.add(gaps_s(measured))
    run.send_lag.add((measured.ready_s - measured.intended_s)[~np.isnan(measured.sent_s)])
    run.connect_wait.add(measured.connect_s[measured.connect_s > 0])
    if run.begun is not None:
        sent = ~np.isnan(measured.sent_s)
        # As in `statistics`: a failure before the sending is the server's.
        kept_back = (measured.state == UNFINISHED) & ~np.isnan(measured.intended_s)
        run.scheduled_s.append(measured.intended_s[sent | kept_back])
        run.ready_s.append(measured.ready_s[sent])
    _note_tokens(run, records.select(ok), asked)
    _note_totals(run, records)
    _keep_sample(run, records)


def _note_totals(run: LongRun, records: Records) -> None:
    ok = records.state == SUCCEEDED
    run.num_tokens += float(np.nansum(records.tokens[ok]))
    run.num_ok += int(ok.sum())
    run.ttft_sum_s += float(np.sum((records.first_token_s - records.sent_s)[ok]))
    run.e2e_sum_s += float(np.sum((records.last_token_s - records.sent_s)[ok]))
    left = records.state == CANCELLED
    run.num_left += int(left.sum())
    run.num_left_events += int(records.num_events[left].sum())
    run.left_ttft.add((records.first_token_s - records.intended_s)[left])


def _note_tokens(run: LongRun, ok: Records, asked: Callable[[Records], Values | None]) -> None:
    known = ~np.isnan(ok.tokens)
    more = known & (ok.num_events > ok.tokens)
    cached = ok.cached_tokens[~np.isnan(ok.cached_tokens)]
    run.has_cached = run.has_cached or len(cached) > 0
    exact = asked(ok)
    wrong = np.zeros(len(ok), np.bool_) if exact is None else known & (ok.tokens != exact)
    for name, count in {
        "num_output_tokens": np.nansum(ok.tokens),
        "num_prompt_tokens": np.nansum(ok.prompt_tokens),
        "num_cached_prompt_tokens": np.sum(cached),
        "num_events": np.sum(ok.num_events),
        "num_without_done": np.sum(ok.without_done),
        "num_without_usage": np.sum(~known),
        "num_more_events_than_tokens": np.sum(more),
        "num_wrong_length": np.sum(wrong),
        "num_first_tokens_estimated": np.sum(known & ~more & np.isnan(ok.first_tokens)),
        "num_merged_events": np.sum(ok.merged_events),
    }.items():
        run.counts[name] = run.counts.get(name, 0) + int(count)


def _keep_sample(run: LongRun, records: Records) -> None:
    """Keep every stride-th request; double the stride if too many are kept."""
    kept = records.select(records.index % run.stride == 0)
    run.sample.append(kept)
    while sum(map(len, run.sample)) > MAX_SAMPLE:
        run.stride *= 2
        run.sample = [one.select(one.index % run.stride == 0) for one in run.sample]


def sample_of(run: LongRun) -> Records:
    """Return the requests that are kept for the plots, ordered by index."""
    return join(run.sample)
