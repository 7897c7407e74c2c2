"""Clients that left, and what the server's counters say of their requests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loadtest.client.records import CANCELLED, SUCCEEDED, Records
from loadtest.judging.latency import distribution
from loadtest.judging.server_metrics import ABORTED, COUNTERS, RUNNING, Scrape, delta
from loadtest.report.answer_schema import CancellationFigures
from loadtest.report.part import Distribution

MIN_LEFT_OF_DECLARED = 0.5
"""A smaller part of the declared share gives a warning."""


@dataclass(frozen=True)
class Left:
    """The requests whose client left, warm-up included."""

    num_left: int
    num_before_token: int
    ttft_s: Distribution
    """Of those that had a token."""
    num_received: float
    """Tokens that any client received: by usage, and by events of those that left."""


def left_of(records: Records) -> Left:
    """Return what the records say of clients that left."""
    left = records.select(records.state == CANCELLED)
    seen = left.select(~np.isnan(left.first_token_s))
    ok = records.state == SUCCEEDED
    return Left(
        len(left),
        len(left) - len(seen),
        distribution(seen.first_token_s - seen.intended_s, withhold=False),
        float(np.nansum(records.tokens[ok])) + float(np.sum(left.num_events)),
    )


def cancellation_figures(
    left: Left, before: Scrape | None, after: Scrape | None
) -> CancellationFigures:
    """Return what the server did with the requests of clients that left, by its counters."""
    aborted = running = unseen = None
    if before is not None and after is not None:
        if ABORTED in after.values:
            aborted = round(delta(before, after, ABORTED))
        if RUNNING in after.values:
            running = round(after.values[RUNNING])
        unseen = max(
            round(delta(before, after, COUNTERS["generation_tokens"]) - left.num_received), 0
        )
    return CancellationFigures(
        num_left=left.num_left,
        num_left_before_token=left.num_before_token,
        ttft_s=left.ttft_s,
        num_aborted=aborted,
        num_running_after=running,
        num_tokens_after_leaving=unseen,
    )


def cancellation_warnings(found: CancellationFigures, num_requests: int, share: float) -> list[str]:
    """Return what the counts of the client and of the server say against the figures.

    Args:
        num_requests: All requests, warm-up included.
        share: The declared share of clients that leave.
    """
    warnings = []
    if found.num_left < MIN_LEFT_OF_DECLARED * share * num_requests:
        warnings.append(
            f"{found.num_left} of {num_requests} clients left; cancellations.share is {share:g}: "
            "the other answers ended before their client's time"
        )
    if found.num_running_after:
        warnings.append(
            f"the server still runs {found.num_running_after} requests after the last answer, some "
            "perhaps of clients that left"
        )
    if found.num_aborted is not None and found.num_aborted < found.num_left:
        warnings.append(
            f"{found.num_left} clients left; the server counts {found.num_aborted} aborted "
            "requests: it may have finished the others for nobody"
        )
    return warnings
