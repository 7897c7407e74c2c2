"""Arrival processes against what probability theory says of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.arrivals.dispersion import ARRIVALS_PER_BIN, dispersion
from loadtest.arrivals.schedule import arrival_times
from loadtest.arrivals.table import ARRIVALS
from loadtest.config import Scenario

SEEDS = range(20)


def scenario(**options: object) -> Scenario:
    values = {"name": "x", "rate_rps": 50.0, "num_requests": 600, **options}
    return Scenario.model_validate({k: v for k, v in values.items() if v is not None})


def test_poisson_arrivals_have_the_gaps_and_counts_of_a_poisson_process() -> None:
    # An independent simulation of true Poisson processes gives the 99 % intervals.
    rng = np.random.default_rng(12345)
    simulated = [dispersion(np.cumsum(rng.exponential(1 / 50, 600))) for _ in range(4000)]
    found = [
        dispersion(arrival_times(scenario(), num_warmup_requests=0, seed=seed)) for seed in SEEDS
    ]
    assert len(found) == 20
    for name in ("rate_rps", "gap_cv", "index_of_dispersion"):
        reference = np.array([getattr(one, name) for one in simulated], float)
        values = np.array([getattr(one, name) for one in found], float)
        # The mean of twenty seeds, whose interval is tighter by sqrt(20), and each single seed.
        means = rng.choice(reference, (4000, len(values))).mean(axis=1)
        low, high = np.quantile(means, [0.005, 0.995])
        assert low <= values.mean() <= high, name
        low, high = np.quantile(reference, [0.005, 0.995])
        assert np.mean((values >= low) & (values <= high)) >= 0.9, name


def test_gaps_of_poisson_arrivals_pass_a_kolmogorov_test() -> None:
    times = arrival_times(scenario(num_requests=5000), num_warmup_requests=0, seed=3)
    gaps = np.sort(np.diff(times))
    expected = 1 - np.exp(-50 * gaps)
    ranks = np.arange(1, len(gaps) + 1) / len(gaps)
    distance = np.max(np.abs(ranks - expected))
    assert distance < 1.63 / np.sqrt(len(gaps))  # the 1 % critical value


def test_constant_arrivals_are_even() -> None:
    times = arrival_times(
        scenario(arrival="constant", num_requests=7), num_warmup_requests=0, seed=1
    )
    assert times == pytest.approx(np.arange(7) / 50)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_declared_variation(burstiness: float) -> None:
    times = arrival_times(
        scenario(arrival="gamma", burstiness=burstiness, num_requests=20000),
        num_warmup_requests=0,
        seed=5,
    )
    found = dispersion(times)
    assert found.gap_cv == pytest.approx(burstiness**-0.5, rel=0.05)
    assert found.rate_rps == pytest.approx(50, rel=0.05)


def test_a_duration_bounds_the_measured_arrivals_and_not_the_warmup() -> None:
    counts = []
    for seed in SEEDS:
        times = arrival_times(
            scenario(num_requests=None, duration_s=4.0), num_warmup_requests=10, seed=seed
        )
        assert times[-1] <= times[10] + 4.0
        counts.append(len(times) - 10)
    # 200 are expected; five standard errors of a mean of twenty Poisson counts.
    assert np.mean(counts) == pytest.approx(200, abs=5 * np.sqrt(200 / 20))
    assert len(set(counts)) > 1


def test_the_same_seed_gives_the_same_schedule_and_another_does_not() -> None:
    first, second, third = (
        arrival_times(scenario(), num_warmup_requests=5, seed=seed) for seed in (7, 7, 8)
    )
    assert len(first) == 605
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_a_burst_is_all_at_once() -> None:
    times = arrival_times(
        scenario(rate_rps=None, arrival="burst", num_requests=5), num_warmup_requests=2, seed=1
    )
    assert times.tolist() == [0.0] * 7


def test_dispersion_tells_a_bunched_process_from_a_poisson_one() -> None:
    rng = np.random.default_rng(1)
    poisson = np.cumsum(rng.exponential(0.02, 1000))
    bunched = np.sort(np.repeat(np.cumsum(rng.exponential(0.2, 100)), 10))
    assert dispersion(poisson).index_of_dispersion == pytest.approx(1, abs=0.4)
    index = dispersion(bunched).index_of_dispersion
    assert index is not None and index > 5
    assert ARRIVALS_PER_BIN == 10
    assert dispersion(np.zeros(5)).rate_rps is None


def test_a_ramp_has_the_rate_of_its_place() -> None:
    found = []
    for seed in SEEDS:
        times = arrival_times(
            scenario(
                arrival="ramp", rate_rps=20.0, rate_end_rps=180.0, num_requests=None, duration_s=10
            ),
            num_warmup_requests=4,
            seed=seed,
        )
        assert (np.diff(times) >= 0).all()
        found.append(times[4:] - times[3])
    # The expected count up to t is 20 t + 8 t^2; five standard errors over twenty seeds.
    for at_s in (2.5, 5.0, 10.0):
        expected = 20 * at_s + 8 * at_s**2
        mean = np.mean([np.sum(times <= at_s) for times in found])
        assert mean == pytest.approx(expected, abs=5 * np.sqrt(expected / 20))
    times = arrival_times(
        scenario(arrival="ramp", rate_rps=90.0, rate_end_rps=10.0, num_requests=500),
        num_warmup_requests=0,
        seed=1,
    )
    assert len(times) == 500
    assert np.isfinite(times).all()
    assert (np.diff(times) >= 0).all()


def test_a_trace_is_replayed_at_its_own_times() -> None:
    trace = [5.0, 7.0, 6.0, 11.0]
    times = arrival_times(
        scenario(arrival="trace", rate_rps=None, num_requests=2, trace_speed=2.0),
        num_warmup_requests=1,
        seed=0,
        trace_s=trace,
    )
    assert times.tolist() == [0.0, 0.5, 1.0]
    times = arrival_times(
        scenario(arrival="trace", rate_rps=None, num_requests=None, duration_s=1.5),
        num_warmup_requests=0,
        seed=0,
        trace_s=trace,
    )
    assert times.tolist() == [0.0, 1.0]


RECORDED = json.loads((Path(__file__).parent / "schedules.json").read_text(encoding="utf-8"))


def as_recorded(
    scenario: dict[str, Any], num_warmup_requests: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Return a schedule as an entry of schedules.json."""
    times = arrival_times(
        Scenario.model_validate({"name": "x", **scenario}),
        num_warmup_requests=num_warmup_requests,
        seed=seed,
        trace_s=RECORDED["trace_s"],
    )
    return {
        "scenario": scenario,
        "num_warmup_requests": num_warmup_requests,
        "seed": seed,
        "count": len(times),
        "first_s": times[:5].tolist(),
        "last_s": float(times[-1]),
        "sha256": hashlib.sha256(times.astype("<f8").tobytes()).hexdigest(),
    }


@pytest.mark.parametrize("recorded", RECORDED["schedules"], ids=str)
def test_a_seed_gives_the_times_of_earlier_releases(recorded: dict[str, Any]) -> None:
    """Plan digests, and with them comparisons of reports, depend on every bit of a schedule."""
    asked = [recorded[key] for key in ("scenario", "num_warmup_requests", "seed")]
    assert as_recorded(*asked) == recorded
    assert recorded["count"] > 0


def test_schedules_of_every_pattern_are_recorded() -> None:
    recorded = {one["scenario"].get("arrival", "poisson") for one in RECORDED["schedules"]}
    missing = [name for name in ARRIVALS if name not in recorded]
    assert missing == [], "docs/how-to/add-an-arrival-pattern.md says how to record one"
    assert len(RECORDED["schedules"]) >= 56
