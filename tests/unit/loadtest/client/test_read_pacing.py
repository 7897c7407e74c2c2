"""Naps are long enough to save wake-ups, and too short to cost a figure."""

import pytest

from loadtest.client.read_pacing import event_gap_ns, nap_ns

MS = 1_000_000


@pytest.mark.parametrize(
    ("gap_ms", "mean_request_ms", "expected_ms"),
    [
        (20.0, None, 2.5),  # an eighth of the gap
        (20.0, 720.0, 2.5),  # a long answer in a closed loop: the same
        (20.0, 20.0, 0.4),  # a short one: a fiftieth of the request
        (20.0, 1.0, 0.25),  # and never below what a wake-up is worth
        (0.1, None, 0.25),
        (500.0, None, 3.0),
    ],
)
def test_a_nap_follows_the_gap_and_the_request(
    gap_ms: float, mean_request_ms: float | None, expected_ms: float
) -> None:
    mean_ns = None if mean_request_ms is None else round(mean_request_ms * MS)
    assert nap_ns(round(gap_ms * MS), mean_ns) == round(expected_ms * MS)


@pytest.mark.parametrize(
    ("num_running", "num_reads", "expected_ms"), [(4, 8, 10.0), (1, 10, 2.0), (3, 0, 0.0)]
)
def test_streams_without_a_token_yet_say_nothing_of_the_gap(
    num_running: int, num_reads: int, expected_ms: float
) -> None:
    assert event_gap_ns(20 * MS, num_running, num_reads) == round(expected_ms * MS)
