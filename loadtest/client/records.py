"""The results of a client process: one row per request. Pure; npz."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SUCCEEDED, FAILED, UNFINISHED, CANCELLED = 0, 1, 2, 3
STATES = ("succeeded", "failed", "unfinished", "cancelled")
LEFT = "left"
"""The error of a request whose client left, before it becomes the state CANCELLED."""

BY_EVENT = ("event_s", "event_tokens")
"""Columns with a value per event."""

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Records:
    """One row per request. Times are seconds from the start of the schedule, and NaN for an event
    that never happened. Unknown counts are NaN."""

    index: NDArray[np.int64]
    session: NDArray[np.int64]
    """The session of a request; without sessions, its index."""
    turn: NDArray[np.int64]
    """The turn within the session, from 0."""
    warmup: NDArray[np.bool_]
    state: NDArray[np.uint8]
    """SUCCEEDED, FAILED, UNFINISHED or CANCELLED."""
    error: NDArray[np.str_]
    """Class of failure; empty for a request that succeeded."""
    intended_s: Seconds
    sent_s: Seconds
    """When the client gave the last bytes of the request to the kernel, the first time."""
    connect_s: Seconds
    """How long the request waited for a connection of its own; 0 on an open connection."""
    first_byte_s: Seconds
    first_token_s: Seconds
    last_token_s: Seconds
    """The last event with a token or the finish reason."""
    end_s: Seconds
    """The last byte of the response, or the moment of failure."""
    tokens: Seconds
    """Output tokens by the server's usage."""
    first_tokens: Seconds
    """Tokens in the first token event: 1 if events hold one each, NaN if unknown."""
    prompt_tokens: Seconds
    cached_tokens: Seconds
    retry_after_s: Seconds
    resent: NDArray[np.bool_]
    """Sent once more, because the server had closed the connection."""
    without_done: NDArray[np.bool_]
    """Whole answers that end without `[DONE]`."""
    merged_events: NDArray[np.int64]
    """Token events that came in one read with the event before."""
    num_events: NDArray[np.int64]
    """Number of token events. Request i has `event_s[sum(num_events[:i]):][:num_events[i]]`."""
    event_s: Seconds
    event_tokens: Seconds
    """Tokens of each event, if the server says; else the request's tokens shared evenly."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def ready_s(self) -> Seconds:
        """Return when the client would have sent each request on an open connection. To connect
        takes the server's time and the network's, and is not a lag of the client."""
        return self.sent_s - self.connect_s

    def save(self, path: Path) -> None:
        """Write the columns as npz, without pickle."""
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Records:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as columns:
            return cls(**{field.name: columns[field.name] for field in fields(cls)})

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Records:
        """Return the rows of a mask, or of indices in their order, with their events."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        starts = np.cumsum(self.num_events) - self.num_events
        lengths = self.num_events[rows]
        ends = np.cumsum(lengths)
        events = np.repeat(starts[rows] - (ends - lengths), lengths) + np.arange(lengths.sum())
        return Records(
            **{
                field.name: getattr(self, field.name)[events if field.name in BY_EVENT else rows]
                for field in fields(self)
            }
        )

    def without_events(self) -> Records:
        """Return the rows without the times and tokens of their events."""
        nothing = np.zeros(0)
        num_events = np.zeros(len(self), np.int64)
        return replace(self, num_events=num_events, event_s=nothing, event_tokens=nothing)


def records_path(directory: Path, scenario: str) -> Path:
    """Return where the records of a scenario are kept."""
    return directory / f"records-{scenario}.npz"


def concatenate(parts: list[Records]) -> Records:
    """Put records after each other."""
    return Records(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Records)
        }
    )


def join_records(parts: list[Records]) -> Records:
    """Join the records of several client processes, ordered by index."""
    joined = concatenate(parts)
    return joined.select(np.argsort(joined.index, kind="stable"))
