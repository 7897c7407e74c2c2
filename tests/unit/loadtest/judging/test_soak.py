"""Drifts against series whose slope is known by construction."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from loadtest.config import SLO
from loadtest.judging.blocks import Blocks, Grid, make_grid, over_time, rate_interval
from loadtest.judging.drift import drift_of, student_quantile, theil_sen
from loadtest.judging.samples import Samples
from loadtest.judging.soak import judge_drifts
from loadtest.judging.window import Window
from tests.unit.loadtest.made_records import made_records
from tuneline.core.verdict import Verdict

HOUR_S = 3600.0


def series(
    slope_per_h: float, noise: float, *, memory: float = 0.0, seed: int = 0
) -> tuple[Any, Any]:
    """An hour of points each half minute; the noise is an autoregression."""
    rng = np.random.default_rng(seed)
    times = np.arange(0, HOUR_S, 30.0)
    steps = rng.normal(0, noise, len(times))
    for place in range(1, len(steps)):
        steps[place] += memory * steps[place - 1]
    return times, 100.0 + slope_per_h * times / HOUR_S + steps


def test_the_slope_is_the_median_slope_of_all_pairs() -> None:
    times, values = np.array([0.0, 1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0, 9.0])
    # Pairs: 2, 0.5, 2, -1, 2, 3.5.
    assert theil_sen(times, values) == 2.0


@pytest.mark.parametrize(
    ("memory", "num_points"), [(0.0, 120), (0.6, 120), (0.8, 120), (0.0, 40), (0.6, 40)]
)
def test_nineteen_of_twenty_intervals_contain_the_true_slope(
    memory: float, num_points: int
) -> None:
    hits = found = 0
    for seed in range(400):
        times, values = series(10.0, 1.0, memory=memory, seed=seed)
        drift = drift_of("x", "MiB", times[-num_points:], values[-num_points:])
        if drift.ci95 is not None:
            found += 1
            hits += drift.ci95[0] <= 10.0 <= drift.ci95[1]
    assert found >= 360
    # Two standard errors of a share of 0.95 in 400 are 0.022.
    assert 0.925 <= hits / found <= 0.99


def test_intervals_of_independent_points_are_not_wider_than_needed() -> None:
    widths, exact = [], []
    for seed in range(50):
        times, values = series(0.0, 1.0, seed=seed)
        drift = drift_of("x", "MiB", times, values)
        assert drift.ci95 is not None
        widths.append(drift.ci95[1] - drift.ci95[0])
        line = stats.linregress(times / HOUR_S, values)
        exact.append(2 * stats.t.ppf(0.975, len(times) - 2) * line.stderr)
    assert np.mean(widths) <= 1.2 * np.mean(exact)


@pytest.mark.parametrize("freedom", [3, 5, 10, 118])
def test_the_quantile_is_that_of_students_t(freedom: int) -> None:
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_a_wandering_series_has_no_interval() -> None:
    times, _ = series(0.0, 1.0)
    values = np.cumsum(np.random.default_rng(0).normal(size=len(times)))
    drift = drift_of("x", "MiB", times, values)
    assert drift.ci95 is None
    assert "depend on their neighbours" in (drift.without_interval or "")


def test_a_constant_series_has_the_slope_zero() -> None:
    times, _ = series(0.0, 1.0)
    drift = drift_of("x", "MiB", times, np.full(len(times), 7.0))
    assert (drift.per_hour, drift.ci95) == (0.0, (0.0, 0.0))


def test_outliers_move_the_slope_little() -> None:
    times, values = series(10.0, 0.1)
    values[::15] += 500.0
    found = drift_of("x", "MiB", times, values)
    assert found.per_hour == pytest.approx(10.0, abs=0.5)


def test_too_few_points_have_no_interval() -> None:
    points = np.linspace(0.0, 7.0, 8)
    drift = drift_of("x", "s", points, points)
    assert drift.ci95 is None
    assert drift.without_interval == "8 points; at least 30 are needed"
    assert drift_of("x", "s", np.zeros(0), np.zeros(0)).without_interval == "no series of values"


def judged(slo: dict[str, float], memory: Any = None, drift_per_s: float = 0.0) -> Any:
    options = SLO.model_validate(slo)
    records = made_records(4000, rate_rps=4000 / HOUR_S, drift_per_s=drift_per_s)
    grid = make_grid(Window("arrivals", 0.0, HOUR_S, 0.0), 0.3)
    assert grid is not None
    assert grid.num_blocks == 240
    blocks = Blocks(grid, options)
    blocks.add(records)
    samples = None
    if memory is not None:
        times, values = memory
        samples = Samples(times.tolist(), values.tolist(), [None] * len(times))
    found = judge_drifts(options, over_time(blocks, samples))
    assert len(found) == len(slo)
    return found[0]


@pytest.mark.parametrize(
    ("slope", "verdict"),
    [
        (0.0, Verdict.PASS),
        (40.0, Verdict.FAIL),
        (20.0, Verdict.INCONCLUSIVE),
        (-90.0, Verdict.PASS),
    ],
)
def test_the_growth_of_memory_is_judged_by_its_interval(slope: float, verdict: Verdict) -> None:
    limit = {"max_server_memory_growth_mib_per_hour": 20.0}
    one = judged(limit, series(slope, 2.0, memory=0.5, seed=3))
    assert one.verdict is verdict, one.reason
    assert one.measured == pytest.approx(slope, abs=6.0)
    assert "95 % interval" in one.reason


def test_a_server_without_a_memory_figure_is_inconclusive() -> None:
    one = judged({"max_server_memory_growth_mib_per_hour": 20.0})
    assert one.verdict is Verdict.INCONCLUSIVE
    assert "no series of values" in one.reason


@pytest.mark.parametrize(("growth", "verdict"), [(0.0, Verdict.PASS), (0.1, Verdict.FAIL)])
def test_the_growth_of_latency_is_judged_as_a_share_of_its_level(
    growth: float, verdict: Verdict
) -> None:
    one = judged({"max_latency_drift_per_hour": 0.3}, drift_per_s=growth / HOUR_S)
    assert one.verdict is verdict, one.reason
    if growth:
        # The TTFT is 0.15 s at first and grows by 0.1 s: half of its median level.
        assert one.measured == pytest.approx(0.1 / 0.2, rel=0.15)
        assert "ttft_s grows" in one.reason


def test_a_rate_has_an_interval_by_its_blocks() -> None:
    hits = missing = 0
    for seed in range(20):
        counts = np.random.default_rng(seed).poisson(50.0, 100).astype(float)
        bounds = rate_interval(counts, Grid(0.0, 200.0, 100, 0.0))
        missing += bounds is None
        hits += bounds is not None and bounds[0] <= 25.0 <= bounds[1]
    # A series that looks correlated by chance has none.
    assert missing <= 4
    assert hits >= 19 - missing
    assert rate_interval(np.ones(5), Grid(0.0, 5.0, 5, 0.0)) is None
