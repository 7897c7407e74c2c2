"""The window that rates are taken over. Pure.

A rate counts what ends in a window, so the window must show the load as it goes on. It ends with
the last arrival: later, the load only drains. In an open loop it begins no earlier than the time of
a request after the first arrival: until then, requests arrive and none ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loadtest.client.records import Records
from loadtest.judging.clusters import bounds_of

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """Seconds from the start of the schedule."""

    name: Literal["arrivals", "whole run"]
    start_s: float
    """The first measured arrival."""
    end_s: float
    rates_from_s: float
    """From when on rates count: the start, or later in an open loop that fills."""


def find_window(
    *,
    first_s: float,
    start_s: float,
    end_s: float,
    last_end_s: float,
    median_s: float | None,
    is_open: bool,
) -> Window:
    """Return the window of a run.

    Args:
        first_s: The first arrival, warm-up included.
        start_s: The first measured arrival.
        end_s: The end of the arrivals.
        last_end_s: When the last measured request has ended.
        median_s: The median time from arrival to end, of requests or of conversations; None if none
            has ended.
        is_open: The arrivals do not wait for the server.
    """
    if median_s is None:
        return Window("arrivals", start_s, end_s, start_s)
    rates_from_s = max(start_s, first_s + median_s) if is_open else start_s
    if end_s - rates_from_s >= median_s:
        return Window("arrivals", start_s, end_s, rates_from_s)
    return Window("whole run", start_s, last_end_s, start_s)


def window_of(records: Records, duration_s: float | None, *, is_open: bool) -> Window:
    """Return the window of records that are ordered by session and turn.

    Args:
        records: All requests, warm-up included.
        duration_s: The scenario's measured duration, if it has one.
        is_open: The arrivals do not wait for the server.
    """
    measured = records.select(~records.warmup)
    # A later turn of a conversation follows the server's answer: it is not an arrival.
    arrivals = measured.intended_s[(measured.turn == 0) & ~np.isnan(measured.intended_s)]
    if not len(arrivals):
        return Window("whole run", 0.0, 0.0, 0.0)
    start_s = float(np.min(arrivals))
    lengths = _lengths(measured)
    return find_window(
        first_s=float(np.nanmin(records.intended_s)),
        start_s=start_s,
        end_s=float(np.max(arrivals)) if duration_s is None else start_s + duration_s,
        last_end_s=float(np.nanmax(measured.end_s)) if len(lengths) else start_s,
        median_s=float(np.median(lengths)) if len(lengths) else None,
        is_open=is_open,
    )


def _lengths(measured: Records) -> Values:
    """Return the seconds from the arrival to the end of each request, or of each conversation."""
    starts, _ = bounds_of(measured.session)
    if not len(starts):
        return np.zeros(0)
    lengths = np.fmax.reduceat(measured.end_s, starts) - measured.intended_s[starts]
    known: Values = lengths[~np.isnan(lengths)]
    return known
