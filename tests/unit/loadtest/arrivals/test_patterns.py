"""The facts of each arrival pattern that planning, calibration, shards and time limits ask for."""

from typing import Any

import pytest

from loadtest.arrivals.table import ARRIVALS, brief, peak_rps, rates, slowest_rps
from loadtest.arrivals.trace import busiest_second
from loadtest.config import LoadTestConfig, Scenario
from loadtest.longest import longest_s

SCENARIOS: dict[str, dict[str, Any]] = {
    "poisson": {"rate_rps": 20.0, "num_requests": 40},
    "constant": {"arrival": "constant", "rate_rps": 20.0, "num_requests": 40},
    "gamma": {"arrival": "gamma", "burstiness": 0.5, "rate_rps": 20.0, "num_requests": 40},
    "ramp": {"arrival": "ramp", "rate_rps": 20.0, "rate_end_rps": 50.0, "num_requests": 40},
    "burst": {"arrival": "burst", "num_requests": 40},
    "trace": {"arrival": "trace", "num_requests": 40},
}


def scenario(name: str, **changes: Any) -> Scenario:
    return Scenario.model_validate({"name": "x", **SCENARIOS[name], **changes})


def test_every_pattern_is_covered() -> None:
    assert SCENARIOS.keys() == ARRIVALS.keys()


@pytest.mark.parametrize(
    ("name", "slowest", "peak"),
    [
        ("poisson", 20.0, 20.0),
        ("constant", 20.0, 20.0),
        ("gamma", 20.0, 20.0),
        ("ramp", 20.0, 50.0),
        ("burst", None, None),
        ("trace", None, None),
    ],
)
def test_rates_of_a_pattern(name: str, slowest: float | None, peak: float | None) -> None:
    assert slowest_rps(scenario(name)) == slowest
    assert peak_rps(scenario(name)) == peak
    assert bool(rates(scenario(name))) is (peak is not None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("poisson", {"rate_rps": 20.0, "num_requests": 40}),
        ("constant", {"arrival": "constant", "rate_rps": 20.0, "num_requests": 40}),
        ("gamma", {"arrival": "gamma", "burstiness": 0.5, "rate_rps": 20.0, "num_requests": 40}),
        ("ramp", {"rate_rps": 50.0, "num_requests": 100}),
        ("burst", {"arrival": "burst", "num_requests": 40}),
        # Three arrivals within a second; no less than ten requests a second.
        ("trace", {"rate_rps": 10.0, "num_requests": 20}),
    ],
)
def test_a_calibration_sends_two_seconds_at_the_peak(name: str, expected: dict[str, Any]) -> None:
    times_s = [0.0, 5.0, 5.2, 5.9, 9.0]
    found = brief(scenario(name), times_s, duration_s=2.0, max_requests=5000)
    assert found == expected
    Scenario.model_validate({"name": "calibration", **found})


def test_a_calibration_sends_no_more_than_its_limit() -> None:
    found = brief(scenario("poisson", rate_rps=9000.0), (), duration_s=2.0, max_requests=5000)
    assert found["num_requests"] == 5000
    found = brief(scenario("burst", num_requests=9000), (), duration_s=2.0, max_requests=5000)
    assert found["num_requests"] == 5000


def test_the_busiest_second_of_a_trace() -> None:
    assert busiest_second([0.0, 0.1, 3.0, 3.4, 3.9, 3.99, 4.1]) == 4
    assert busiest_second([]) == 1


def test_a_falling_ramp_is_as_long_as_its_slowest_rate() -> None:
    falling = scenario("ramp", rate_rps=50.0, rate_end_rps=2.0, num_requests=100)
    config = LoadTestConfig(scenarios=[falling], num_warmup_requests=0, timeout_s=10.0)
    assert longest_s(config) == 2 * (2 * 100 / 2.0 + 10.0 + 60)
