"""The time for which reads may gather before the client looks again. Pure; in nanoseconds."""

from __future__ import annotations

NAP_SHARE = 8
MIN_NAP_NS, MAX_NAP_NS = 250_000, 3_000_000
CLOSED_NAP_SHARE = 50


def event_gap_ns(span_ns: int, num_running: int, num_reads: int) -> int:
    """Return the time between the events of a stream, by the reads of a span; 0 without a read.

    A span in which all streams wait for their first token says nothing of the tokens that follow.
    """
    return span_ns * num_running // num_reads if num_reads else 0


def nap_ns(gap_ns: int, mean_request_ns: int | None = None) -> int:
    """Return the time for which the client may sleep between looks at its sockets.

    The kernel keeps the receive time of a waiting read, unless another read of its stream joins it.

    Args:
        gap_ns: The time between the events of a stream. With a nap of an eighth of it, two events
            share a read only if they come eight times closer together than usual.
        mean_request_ns: The mean time of a request in a closed loop. The client sees the end of a
            request half a nap late on average, so a nap of 1/50 costs 1 % of throughput. None in
            an open loop.
    """
    nap = min(gap_ns // NAP_SHARE, MAX_NAP_NS)
    if mean_request_ns is not None:
        nap = min(nap, mean_request_ns // CLOSED_NAP_SHARE)
    return max(nap, MIN_NAP_NS)
