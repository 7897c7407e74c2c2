"""What a client process is told, and the records it gives back. Pure; plain JSON and npz."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUCCEEDED, FAILED, UNFINISHED = 0, 1, 2

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """The requests of one scenario, as every client process of it is given them.

    Process i of W sends the requests whose index modulo W is i; one of W or above, where pods have
    more processes than a closed loop has streams, sends none.
    """

    host: str
    port: int
    tls: bool
    head: str
    """Request line and headers up to `X-Request-Id: `; holds no key."""
    bodies: list[str]
    """JSON request bodies."""
    body_of: list[int]
    """Body of request i is `bodies[body_of[i % len(body_of)]]`."""
    num_warmup_requests: int
    arrivals_s: list[float] | None
    """Open loop: seconds from the start, one per request. None for a closed loop."""
    concurrency: int | None
    """Closed loop: streams over all processes."""
    num_requests: int | None
    """Closed loop: how many to send, warm-up included; None to send until `duration_s`."""
    duration_s: float | None
    """Closed loop: seconds from the first measured request in which requests are begun."""
    timeout_s: float
    num_workers: int
    worker: int
    num_connections: int
    """Opened before the start, by this process."""
    ca_file: str | None = None
    """Certificates to trust, beside the system's."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        return cls(**value)


@dataclass(frozen=True)
class Records:
    """One row per request. Times are seconds from the start of the schedule, NaN where it never
    happened; counts are NaN where they are not known."""

    index: NDArray[np.int64]
    warmup: NDArray[np.bool_]
    state: NDArray[np.uint8]
    """SUCCEEDED, FAILED or UNFINISHED."""
    error: NDArray[np.str_]
    """Class of failure; empty for the succeeded."""
    intended_s: Seconds
    sent_s: Seconds
    """When the last bytes of the request were given to the kernel."""
    first_byte_s: Seconds
    first_token_s: Seconds
    last_token_s: Seconds
    """The last event with a token or the finish reason."""
    end_s: Seconds
    """The last byte of the response, or the moment of failure."""
    tokens: Seconds
    """Output tokens by the server's usage."""
    first_tokens: Seconds
    """Tokens in the first token event: 1 where events hold one each, NaN where not known."""
    prompt_tokens: Seconds
    cached_tokens: Seconds
    retry_after_s: Seconds
    merged_events: NDArray[np.int64]
    """Token events that came in one read with the one before."""
    num_events: NDArray[np.int64]
    """Token events; those of request i are `event_s[sum(num_events[:i]):][:num_events[i]]`."""
    event_s: Seconds
    event_tokens: Seconds
    """Tokens of each event, where the server says; else the request's tokens shared evenly."""

    def __len__(self) -> int:
        return len(self.index)

    def save(self, path: Path) -> None:
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Records:
        with np.load(path, allow_pickle=False) as columns:
            return cls(**{field.name: columns[field.name] for field in fields(cls)})

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Records:
        """The rows of a mask, or of indices in their order, with their events."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        starts = np.concatenate(([0], np.cumsum(self.num_events)))
        spans = [np.arange(starts[row], starts[row + 1]) for row in rows]
        events = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        by_event = ("event_s", "event_tokens")
        return Records(
            **{
                field.name: getattr(self, field.name)[events if field.name in by_event else rows]
                for field in fields(self)
            }
        )


def merge_records(parts: list[Records]) -> Records:
    """The records of several client processes as one, ordered by index."""
    joined = Records(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Records)
        }
    )
    return joined.select(np.argsort(joined.index, kind="stable"))
