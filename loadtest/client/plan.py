"""The orders to a client process: the requests of one scenario. Pure; plain JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """The requests of one scenario, as each of its client processes is given them.

    Process i of W sends the requests whose index modulo W is i. A process with i >= W sends none:
    load pods can have more processes than a closed loop has streams.
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
    """Connections that this process opens before the start."""
    ca_file: str | None = None
    """A file of certificates to trust, next to the system's."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        return cls(**value)
