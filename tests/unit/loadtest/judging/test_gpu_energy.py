"""The meter reads around the requests in flight, and gives no figure that it cannot stand for."""

import pytest

from loadtest.judging.gpu_energy import Meter, Reading, energy_meter


def metered(*rows: tuple[float, list[int]], in_flight: list[int]) -> Meter:
    """A meter that takes the first reading at once, and was asked with these requests in flight."""
    readings = [Reading(at_s, energy_mj) for at_s, energy_mj in rows]
    left = iter(readings)
    meter = Meter(["A", "B"], lambda: next(left), next(left))
    for num_in_flight in in_flight:
        meter.note(num_in_flight)
    return meter


def test_the_window_goes_from_before_the_requests_to_after_them() -> None:
    meter = metered(
        (0.0, [0, 0]), (1.0, [1000, 1000]), (2.0, [31_000, 11_000]), (3.0, [61_000, 21_000]),
        in_flight=[0, 5, 0, 0, 0],
    )  # fmt: skip
    found = meter.figures(2000)
    assert found is not None
    # 60 J and 20 J in two seconds for 2,000 tokens; the idle readings later are not taken.
    assert found.window_s == 2.0
    assert found.mean_power_w == [30.0, 10.0]
    assert found.energy_j == 80.0
    assert found.energy_j_per_1000_tokens == 40.0
    assert found.names == ["A", "B"]


def test_a_pause_without_requests_does_not_end_the_window() -> None:
    meter = metered(
        (0.0, [0, 0]), (1.0, [5000, 0]), (2.0, [6000, 0]), (4.0, [12_000, 0]), (5.0, [13_000, 0]),
        in_flight=[1, 0, 0, 2, 0],
    )  # fmt: skip
    found = meter.figures(None)
    assert found is not None and found.window_s == 5.0 and found.energy_j == 13.0
    assert found.energy_j_per_1000_tokens is None


def test_a_run_without_requests_has_no_figures() -> None:
    assert metered((0.0, [0, 0]), (1.0, [9, 9]), in_flight=[0]).figures(0) is None


def test_a_counter_that_went_back_gives_no_figures() -> None:
    assert metered((0.0, [900, 0]), (1.0, [5, 10]), in_flight=[1]).figures(10) is None


@pytest.mark.parametrize("url", ["http://192.0.2.7:8000/v1", "http://models.example/v1"])
def test_a_server_elsewhere_has_no_meter(url: str) -> None:
    with energy_meter(url) as meter:
        assert meter is None
