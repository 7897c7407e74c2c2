"""The knee of curves that are computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.studies.knee import find_knee
from loadtest.studies.schema import Probe
from tuneline.core.verdict import Verdict


def probe(streams: int, seconds: float, width: float = 0.0, **more: Any) -> Probe:
    values: dict[str, Any] = {
        "rate_rps": None, "concurrency": streams, "verdict": Verdict.PASS, "stopped_early": False,
        "num_requests": 100, "latency": {}, "output_tokens_per_s": 10.0 * streams / seconds,
        "mean_e2e_s": seconds, "mean_e2e_s_ci95": (seconds - width, seconds + width),
        "error_rate": 0.0, "problems": [],
    }  # fmt: skip
    return Probe.model_validate(values | more)


def four_at_once(streams: int) -> float:
    """Return the latency of a server with four places of a second: more streams wait."""
    return max(1.0, streams / 4)


def test_a_server_with_four_places_has_its_knee_at_four() -> None:
    knee = find_knee([probe(n, four_at_once(n)) for n in (1, 2, 4, 8, 16)])
    assert knee is not None
    assert (knee.concurrency, knee.low, knee.high) == (4, 4, 4)
    assert (knee.mean_e2e_s, knee.output_tokens_per_s) == (1.0, 40.0)


def test_a_server_of_one_at_a_time_has_its_knee_at_one() -> None:
    knee = find_knee([probe(n, n * 0.5) for n in (1, 2, 4)])
    assert knee is not None and (knee.concurrency, knee.high) == (1, 1)


def test_a_server_that_never_fills_has_no_upper_end() -> None:
    knee = find_knee([probe(n, 1.0) for n in (1, 2, 4, 8)])
    assert knee is not None and (knee.concurrency, knee.high) == (8, None)


def test_intervals_that_overlap_widen_the_knee() -> None:
    # The power at 4 is 4/s^2 at least 4 / 1.21 = 3.31, and at 5 it may be 5 / 1.15^2 = 3.78.
    probes = [probe(1, 1.0), probe(4, 1.0, 0.1), probe(5, 1.25, 0.1), probe(16, 4.0, 0.1)]
    knee = find_knee(probes)
    assert knee is not None and (knee.concurrency, knee.low, knee.high) == (4, 4, 5)


def test_three_numbers_of_streams_are_needed() -> None:
    two = [probe(1, 1.0), probe(2, 1.0)]
    assert find_knee(two) is None
    assert find_knee([*two, probe(4, 1.0)]) is not None


@pytest.mark.parametrize(
    "bad",
    [
        {"verdict": Verdict.INVALID}, {"error_rate": 0.1}, {"mean_e2e_s_ci95": None},
        {"concurrency": None, "rate_rps": 4.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_measurement_does_not_count(bad: dict[str, Any]) -> None:
    assert find_knee([probe(1, 1.0), probe(2, 1.0), probe(4, 1.0, **bad)]) is None


def test_the_longest_measurement_of_a_number_counts() -> None:
    short = probe(4, 9.0, num_requests=10)
    knee = find_knee([probe(1, 1.0), probe(2, 1.0), probe(4, 1.0), short])
    assert knee is not None and knee.mean_e2e_s == pytest.approx(1.0)
    assert knee.concurrency == 4
