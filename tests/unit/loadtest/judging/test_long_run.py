"""The figures of a long run against the figures of the same records in memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loadtest.arrivals.dispersion import dispersion
from loadtest.client.records import Records
from loadtest.config import SLO
from loadtest.judging.cancellations import left_of
from loadtest.judging.long_reading import MAX_SAMPLE, read_long_run, sample_of
from loadtest.judging.long_run import left_of_long_run, long_statistics
from loadtest.judging.statistics import statistics
from loadtest.judging.window import window_of
from tests.unit.loadtest.made_records import made_records

OBJECTIVES = {
    "ttft_s": {"p90": 0.17, "p99": 0.2},
    "e2e_s": {"p99": 0.5},
    "goodput_ttft_s": 0.16,
    "min_goodput_rps": 1.0,
}


def both(records: Records, *, duration_s: float | None = None) -> tuple[Any, Any]:
    """The figures from memory, and from batches in the order of another process's ends."""
    slo = SLO.model_validate(OBJECTIVES)
    order = np.random.default_rng(5).permutation(len(records))

    def batches() -> Iterator[Records]:
        for part in np.array_split(order, 7):
            yield records.select(part)

    def asked(some: Records) -> Any:
        return np.full(len(some), 6.0)

    run, blocks = read_long_run(
        batches, slo, asked=asked, duration_s=duration_s, arrivals_s=records.intended_s.tolist()
    )
    long = long_statistics(run, blocks, num_unsent=0)
    exact = np.full(len(records), 6.0)
    window = window_of(records, duration_s, is_open=True)
    return statistics(records, slo, exact_tokens=exact, window=window), (run, long)


@pytest.mark.parametrize("share", [0.0, 0.02])
def test_counts_sums_and_shares_are_those_of_all_records(share: float) -> None:
    records = made_records(6000, num_warmup=40, failed=share, left=share)
    memory, (run, long) = both(records)
    for name in (
        "num_offered", "num_succeeded", "num_failed", "num_unfinished", "num_cancelled",
        "num_warmup", "num_resent", "errors", "retry_after_s", "tokens",
        "arrivals_scheduled", "arrivals_delivered",
    ):  # fmt: skip
        assert getattr(long, name) == getattr(memory, name), name
    for name in ("offered_rps", "succeeded_rps", "output_tokens_per_s", "goodput_rps", "window_s"):
        assert getattr(long.throughput, name) == pytest.approx(getattr(memory.throughput, name))
    assert long.mean_in_flight == pytest.approx(memory.mean_in_flight)
    assert long.failed.value == memory.failed.value
    assert long.good.value == pytest.approx(memory.good.value)
    assert long.within.keys() == memory.within.keys()
    for name, found in long.within.items():
        assert found.value == pytest.approx(memory.within[name].value), name
        assert found.n == memory.within[name].n
    assert vars(left_of_long_run(run))["num_left"] == left_of(records).num_left


def test_percentiles_and_means_agree() -> None:
    memory, (_, long) = both(made_records(6000, num_warmup=40))
    assert long.latencies.keys() == memory.latencies.keys()
    for name, found in long.latencies.items():
        expected = memory.latencies[name]
        assert found.n == expected.n, name
        assert found.mean_of_succeeded == pytest.approx(expected.mean_of_succeeded), name
        assert found.max_of_succeeded == pytest.approx(expected.max_of_succeeded), name
        for q, value in expected.percentiles.items():
            assert found.percentiles[q] == pytest.approx(value, rel=0.003), (name, q)


def test_intervals_are_as_wide_as_those_of_all_records() -> None:
    memory, (_, long) = both(made_records(12_000))
    for name in ("ttft_s", "e2e_s"):
        for q in ("p50", "p90"):
            low, high = long.latencies[name].ci95[q]
            expected = memory.latencies[name].ci95[q]
            width = expected[1] - expected[0]
            assert low <= memory.latencies[name].percentiles[q] <= high
            assert 0.4 * width <= high - low <= 2.5 * width, (name, q)
    found, expected = long.within["ttft_s.p90"], memory.within["ttft_s.p90"]
    assert 0.3 <= found.num_independent / expected.num_independent <= 4


def test_failures_make_percentiles_infinite() -> None:
    memory, (_, long) = both(made_records(3000, failed=0.05))
    assert memory.latencies["ttft_s"].percentiles["p99"] is None
    assert long.latencies["ttft_s"].withheld == memory.latencies["ttft_s"].withheld


def test_the_sample_is_bounded_and_even() -> None:
    records = made_records(3 * MAX_SAMPLE, tokens=2)
    _, (run, _) = both(records)
    sample = sample_of(run)
    assert MAX_SAMPLE / 2 <= len(sample) <= MAX_SAMPLE
    assert set(np.diff(sample.index).tolist()) == {run.stride}


@pytest.mark.parametrize("gap_s", [0.0, 0.0005], ids=["burst", "short window"])
def test_requests_longer_than_the_window_have_the_rates_of_the_whole_run(gap_s: float) -> None:
    records = made_records(200)
    due = np.linspace(0.0, gap_s * 199, 200)
    shift = due - records.intended_s
    records = replace(
        records, intended_s=due, sent_s=due + 0.0001, event_s=records.event_s + np.repeat(shift, 6),
        **{name: getattr(records, name) + shift
           for name in ("first_byte_s", "first_token_s", "last_token_s", "end_s")},
    )  # fmt: skip
    memory, (_, long) = both(records)
    assert long.throughput.window == memory.throughput.window == "whole run"
    for name in ("offered_rps", "succeeded_rps", "output_tokens_per_s", "goodput_rps", "window_s"):
        assert getattr(long.throughput, name) == pytest.approx(getattr(memory.throughput, name))
    assert long.throughput.succeeded_rps_ci95 is None
    assert long.latencies["e2e_s"].n == 200


def test_a_run_without_a_measured_request_has_empty_figures() -> None:
    _, (_, long) = both(made_records(50, num_warmup=50))
    assert long.num_offered == long.within["ttft_s.p90"].n == 0
    assert long.latencies["e2e_s"].at(50) is None


def test_requests_that_were_never_begun_are_unfinished() -> None:
    records = made_records(500)
    slo = SLO.model_validate(OBJECTIVES)
    arrivals_s = [*records.intended_s.tolist(), *np.arange(1000.0, 1100.0)]
    run, blocks = read_long_run(
        lambda: iter([records]), slo, asked=lambda _: None, duration_s=None, arrivals_s=arrivals_s
    )
    found = long_statistics(run, blocks, num_unsent=100)
    assert found.arrivals_scheduled == dispersion(np.array(arrivals_s))
    assert found.arrivals_delivered.num_arrivals == 500
    early = long_statistics(run, blocks, num_unsent=100, ended_early=True)
    assert early.arrivals_scheduled == dispersion(records.intended_s)
    assert found.num_offered == 600
    assert found.num_unfinished == 100
    assert found.within["ttft_s.p90"].n == 600
    assert found.failed.value == pytest.approx(1 / 6)
