"""Objectives on drifts: does the latency, or the server's memory, grow while the run goes on? Pure.

The interval of the slope decides, as the interval of a share does: PASS if it lies at or below
the limit, FAIL if it lies above, INCONCLUSIVE if it contains the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.config import SLO
from loadtest.judging.blocks import SHOWN
from loadtest.report.schema import Objective
from loadtest.report.soak_schema import Drift, OverTime
from tuneline.core.page.numbers import signed_digits
from tuneline.core.verdict import Verdict

ORDER = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL)


def judge_drifts(slo: SLO, over_time: OverTime | None) -> list[Objective]:
    """Judge every objective on a drift that is given."""
    found = []
    if (limit := slo.max_latency_drift_per_hour) is not None:
        rows = [_judge(limit, _drift(over_time, name), is_share=True) for name in SHOWN]
        # An answer of one token has no TPOT.
        rows = [row for row in rows if row[2] is not None or row[3].name != "tpot_s"]
        found.append(_objective("max_latency_drift_per_hour", limit, "1/h", rows))
    for name, limit, series, unit in (
        (
            "max_server_memory_growth_mib_per_hour",
            slo.max_server_memory_growth_mib_per_hour,
            "server_memory_mib",
            "MiB/h",
        ),
        (
            "max_kv_cache_growth_per_hour",
            slo.max_kv_cache_growth_per_hour,
            "kv_cache_usage",
            "1/h",
        ),
    ):
        if limit is not None:
            row = _judge(limit, _drift(over_time, series), is_share=False)
            found.append(_objective(name, limit, unit, [row]))
    return found


_Row = tuple[Verdict, str, float | None, Drift]


def _drift(over_time: OverTime | None, name: str) -> Drift:
    if over_time is None:
        return Drift(
            name=name, unit="", level=None, per_hour=None, ci95=None, n=0,
            without_interval="the run has no length",
        )  # fmt: skip
    return over_time.drift(name)


def _judge(limit: float, drift: Drift, *, is_share: bool) -> _Row:
    """Return verdict, reason, slope and series of one drift."""
    if drift.per_hour is None or drift.level is None:
        return Verdict.INCONCLUSIVE, f"{drift.name}: {drift.without_interval}", None, drift
    unit = 1.0
    if is_share:
        if drift.level <= 0:
            return Verdict.INCONCLUSIVE, f"{drift.name}: its level is 0", None, drift
        unit = drift.level
    slope = drift.per_hour / unit
    text = f"{drift.name} grows by {signed_digits(slope)} per hour"
    if drift.ci95 is None:
        return Verdict.INCONCLUSIVE, f"{text}; no interval: {drift.without_interval}", slope, drift
    low, high = (bound / unit for bound in drift.ci95)
    verdict: Verdict = Verdict.PASS if high <= limit else Verdict.INCONCLUSIVE
    if low > limit:
        verdict = Verdict.FAIL
    text += f", 95 % interval {signed_digits(low)} to {signed_digits(high)}"
    return verdict, text, slope, drift


def _objective(name: str, limit: float, unit: str, rows: Sequence[_Row]) -> Objective:
    """Return the objective of several series: the worst of them decides."""
    worst = max(rows, key=lambda row: (ORDER.index(row[0]), row[2] or 0.0))
    verdict = worst[0]
    said = "; ".join(text for one, text, _, _ in rows if one is verdict)
    return Objective(
        name=name,
        limit=limit,
        measured=worst[2],
        unit=unit,
        n=worst[3].n,
        verdict=verdict,
        reason=f"{said}; at most {limit:g} {unit} is allowed (N = {worst[3].n} points)",
    )
