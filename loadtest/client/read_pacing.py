"""How long reads may gather before the client looks again. Pure; times are nanoseconds."""

from __future__ import annotations

NAP_SHARE = 8
MIN_NAP_NS, MAX_NAP_NS = 250_000, 3_000_000
CLOSED_NAP_SHARE = 50


def nap_ns(gap_ns: int, mean_request_ns: int | None = None) -> int:
    """The kernel keeps the time of a read that waits, unless another of its stream joins it.

    Args:
        gap_ns: The time between the events of a stream: an eighth of it lets two hardly meet.
        mean_request_ns: In a closed loop, how long requests take: the next one waits for the end
            of the one before to be seen, half a nap late on average, so a nap of a fiftieth costs
            1 % of throughput. None in an open loop.
    """
    nap = min(gap_ns // NAP_SHARE, MAX_NAP_NS)
    if mean_request_ns is not None:
        nap = min(nap, mean_request_ns // CLOSED_NAP_SHARE)
    return max(nap, MIN_NAP_NS)
