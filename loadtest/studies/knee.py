"""The knee of a search by concurrency: more streams than this buy latency, not throughput. Pure.

The knee is the number of streams N with the greatest power, which is throughput divided by response
time (L. Kleinrock, Power and deterministic rules of thumb for probabilistic problems in computer
communications, ICC 1979). A closed loop without pauses has the throughput N / R by Little's law, so
the power is N / R², and its interval is that of the mean response time R.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.studies.schema import Knee, Probe
from tuneline.core.verdict import Verdict

MIN_POINTS = 3
"""Fewer numbers of streams say nothing about the shape of the curve."""


def find_knee(probes: Sequence[Probe]) -> Knee | None:
    """Return the knee; None if too few numbers of streams were measured.

    A measurement that is INVALID or lost requests does not count. Of several measurements of one
    number of streams, the longest counts.
    """
    measured: dict[int, Probe] = {}
    for probe in sorted(probes, key=lambda one: one.num_requests):
        usable = probe.verdict != Verdict.INVALID and probe.error_rate == 0.0
        if usable and probe.concurrency and probe.mean_e2e_s and probe.mean_e2e_s_ci95:
            measured[probe.concurrency] = probe
    if len(measured) < MIN_POINTS:
        return None
    powers = {streams: _power(streams, probe.mean_e2e_s) for streams, probe in measured.items()}
    knee = max(powers, key=lambda streams: (powers[streams], -streams))
    lowest = _least_power(measured[knee])
    alike = [streams for streams, probe in measured.items() if _most_power(probe) >= lowest]
    best = measured[knee]
    return Knee(
        concurrency=knee,
        low=min(alike),
        high=max(alike) if max(alike) < max(measured) else None,
        mean_e2e_s=best.mean_e2e_s or 0.0,
        output_tokens_per_s=best.output_tokens_per_s,
    )


def _power(streams: int, seconds: float | None) -> float:
    return streams / seconds**2 if seconds else 0.0


def _least_power(probe: Probe) -> float:
    return _power(probe.concurrency or 0, probe.mean_e2e_s_ci95[1] if probe.mean_e2e_s_ci95 else 0)


def _most_power(probe: Probe) -> float:
    return _power(probe.concurrency or 0, probe.mean_e2e_s_ci95[0] if probe.mean_e2e_s_ci95 else 0)
