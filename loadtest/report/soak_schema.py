"""The parts of `report.json` on a run over time: figures by block, the server's memory, drifts."""

from __future__ import annotations

from loadtest.report.part import Part


class Drift(Part):
    """The trend of one figure over the run."""

    name: str
    """`ttft_s`, `tpot_s`, `e2e_s`, `server_memory_mib` or `kv_cache_usage`."""
    unit: str
    level: float | None
    """Median of the series; null without a series."""
    per_hour: float | None
    """Theil-Sen slope in units per hour."""
    ci95: tuple[float, float] | None
    """Its 95 % interval by Sen's method (docs/metrics.md, "Drifts")."""
    n: int
    """Points of the series."""
    without_interval: str | None = None
    """Why there is no interval."""


class OverTime(Part):
    """The run in blocks of equal length. Lists have an entry per block."""

    block_s: float
    time_s: list[float]
    """Begin of each block, in seconds from the start of the schedule."""
    num_offered: list[int]
    num_failed: list[int]
    """Failed and unfinished requests of those that were due in the block."""
    succeeded_rps: list[float]
    output_tokens_per_s: list[float]
    good_rps: list[float]
    """Requests per second that meet every goodput limit."""
    ttft_p50_s: list[float | None]
    """Median of the requests that were due in the block; null without one, or if it is infinite."""
    tpot_p50_s: list[float | None]
    e2e_p50_s: list[float | None]
    server_time_s: list[float]
    """When the server's metrics were read, in seconds from the start of the schedule."""
    server_memory_mib: list[float | None]
    """`process_resident_memory_bytes`."""
    kv_cache_usage: list[float | None]
    """Used share of the KV cache."""
    drifts: list[Drift]

    def drift(self, name: str) -> Drift:
        """Return the drift of a figure; each report has all of them."""
        return next(one for one in self.drifts if one.name == name)
