"""The client processes' figures about themselves, joined. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from loadtest.judging.latency import Values, distribution
from loadtest.report.part import Distribution
from loadtest.report.schema import Client


def client_figures(
    workers: list[dict[str, Any]], send_lag_s: Distribution, connect_wait_s: Distribution
) -> Client:
    """Join the self-checks of the client processes.

    Args:
        workers: The account of each process, as `client.process` writes it.
        send_lag_s, connect_wait_s: From the records of all of them.
    """
    checks = [worker["self_check"] for worker in workers]

    def joined(name: str) -> Values:
        return np.array([value for check in checks for value in check[name]], np.float64)

    def total(name: str) -> int:
        return sum(int(check[name]) for check in checks)

    return Client(
        num_workers=len(workers),
        send_lag_s=send_lag_s,
        connect_wait_s=connect_wait_s,
        loop_lag_s=distribution(joined("loop_lags_s"), withhold=False),
        read_lag_s=distribution(joined("read_lags_s"), withhold=False),
        cpu_s=sum(float(check["cpu_s"]) for check in checks),
        parse_cpu_s=sum(float(worker["parse_cpu_s"]) for worker in workers),
        num_reads=total("num_reads"),
        num_reads_kernel_clock=total("num_reads_kernel_clock"),
        num_connects_in_window=total("num_connects_in_window"),
        num_spares_opened=total("num_spares_opened"),
        num_resent=total("num_resent"),
        steal_share=_largest(check["steal_share"] for check in checks),
        throttled_share=_largest(
            None if check["throttled_s"] is None else check["throttled_s"] / check["wall_s"]
            for check in checks
            if check["wall_s"] > 0
        ),
        nice=min(int(check["nice"]) for check in checks),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((float(value) for value in values if value is not None), default=None)
