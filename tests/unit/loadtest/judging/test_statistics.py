"""Figures against numpy's own percentiles and against cases worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loadtest import percentiles
from loadtest.client.records import FAILED, SUCCEEDED, UNFINISHED, Records, join_records
from loadtest.config import SLO
from loadtest.judging.intervals import block_length
from loadtest.judging.latency import distribution, percentile, share_of
from loadtest.judging.objectives import judge_objectives
from loadtest.judging.statistics import statistics
from loadtest.judging.window import window_of
from loadtest.percentiles import name_of, num_needed
from tests.unit.loadtest.made_records import made_records
from tuneline.core.verdict import Verdict

NAN = float("nan")


def row(
    index: int,
    intended_s: float,
    events_s: list[float],
    *,
    tokens: float | None = None,
    first_tokens: float = 1.0,
    last_token_s: float | None = None,
    state: int = SUCCEEDED,
    error: str = "",
    sent_s: float | None = None,
    connect_s: float = 0.0,
    warmup: bool = False,
) -> Records:
    count = len(events_s) if tokens is None else tokens
    last_s = (events_s[-1] if events_s else NAN) if last_token_s is None else last_token_s
    one: dict[str, Any] = {
        "index": np.array([index]),
        "session": np.array([index]),
        "turn": np.array([0]),
        "warmup": np.array([warmup]),
        "state": np.array([state], np.uint8),
        "error": np.array([error], "U32"),
        "intended_s": np.array([intended_s]),
        "sent_s": np.array([intended_s if sent_s is None else sent_s]),
        "connect_s": np.array([connect_s]),
        "first_byte_s": np.array([events_s[0] if events_s else NAN]),
        "first_token_s": np.array([events_s[0] if events_s else NAN]),
        "last_token_s": np.array([last_s]),
        "end_s": np.array([last_s if events_s else intended_s]),
        "tokens": np.array([count], float),
        "first_tokens": np.array([first_tokens]),
        "prompt_tokens": np.array([10.0]),
        "cached_tokens": np.array([NAN]),
        "retry_after_s": np.array([NAN]),
        "resent": np.array([False]),
        "without_done": np.array([False]),
        "merged_events": np.array([0]),
        "num_events": np.array([len(events_s)]),
        "event_s": np.array(events_s, float),
        "event_tokens": np.full(len(events_s), count / max(len(events_s), 1)),
    }
    return Records(**one)


def stats(
    rows: list[Records],
    slo: SLO | None = None,
    *,
    duration_s: float | None = None,
    is_open: bool = False,
    **options: Any,
) -> Any:
    records = join_records(rows)
    window = window_of(records, duration_s, is_open=is_open)
    options = {"exact_tokens": None, "window": window, **options}
    return statistics(records, slo or SLO(), **options)


@pytest.mark.parametrize("q", [0, 1, 50, 90, 99, 99.9, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 299, 300, 1001])
def test_percentiles_are_numpys(size: int, q: float) -> None:
    values = np.random.default_rng(size).lognormal(size=size)
    assert percentile(values, q) == pytest.approx(np.percentile(values, q), rel=1e-12)


@pytest.mark.parametrize(
    ("q", "needed"), [(50, 5), (75, 11), (90, 29), (95, 59), (99, 299), (99.9, 2995)]
)
def test_percentiles_are_withheld_below_their_number_of_values(q: float, needed: int) -> None:
    # One-sided 95 %: the largest of n values lies above the q-quantile with 1 - q^n.
    assert (q / 100) ** needed <= 0.05 < (q / 100) ** (needed - 1)
    assert num_needed(q) == needed
    enough = distribution(np.ones(needed), also=[q])
    few = distribution(np.ones(needed - 1), also=[q])
    assert enough.at(q) == 1.0
    assert few.at(q) is None
    assert f"at least {needed}" in few.withheld[name_of(q)]
    assert few.n == needed - 1


def test_a_percentile_of_the_list_is_in_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(i, i * 1.0, [i + 0.1, i + 0.2]) for i in range(80)]
    assert all(figure.at(95) is None for figure in stats(rows).latencies.values())
    monkeypatch.setattr(percentiles, "PERCENTILES", (50, 90, 95, 99))
    latencies = stats(rows).latencies
    assert len(latencies) == 7
    for figure in latencies.values():
        assert list(figure.percentiles) == ["p50", "p90", "p95", "p99"]
        assert figure.at(95) is not None


def test_an_objective_adds_its_percentile_to_its_own_metric() -> None:
    rows = [row(i, i * 1.0, [i + 0.1, i + 0.2]) for i in range(80)]
    found = stats(rows, SLO(ttft_s={"p95": 0.2, "p99.9": 1.0}))
    assert list(found.latencies["ttft_s"].percentiles) == ["p50", "p90", "p95", "p99", "p99.9"]
    assert list(found.latencies["e2e_s"].percentiles) == ["p50", "p90", "p99"]
    assert found.latencies["ttft_s"].at(95) == pytest.approx(0.1)
    assert "2995 are needed" in found.latencies["ttft_s"].withheld["p99.9"]
    assert found.within.keys() == {"ttft_s.p95", "ttft_s.p99.9"}


def test_failures_are_infinitely_slow() -> None:
    rows = [row(i, i * 1.0, [i + 0.1, i + 0.2]) for i in range(90)]
    rows += [row(i, i * 1.0, [], state=FAILED, error="timeout") for i in range(90, 97)]
    rows += [row(i, i * 1.0, [], state=UNFINISHED) for i in range(97, 100)]
    found = stats(rows)
    ttft = found.latencies["ttft_s"]
    assert (ttft.n, found.num_offered) == (100, 100)
    assert ttft.at(50) == pytest.approx(0.1)
    assert ttft.at(90) is None  # the 90th of 100 has an infinite neighbour
    assert ttft.withheld["p90"].startswith("infinite")
    assert found.failed.value == pytest.approx(0.1)
    assert found.errors == {"timeout": 7}
    assert found.num_succeeded + found.num_failed + found.num_unfinished == found.num_offered


def test_tpot_leaves_out_the_first_tokens() -> None:
    # 80 ms per event of four tokens: 20 ms per token.
    events = [0.1 + 0.08 * k for k in range(8)]
    found = stats([row(i, 0.0, events, tokens=32, first_tokens=4) for i in range(5)])
    assert found.latencies["tpot_s"].at(50) == pytest.approx(0.02)
    # Without a count in each event, the mean stands for the first, and that is said.
    found = stats([row(i, 0.0, events, tokens=32, first_tokens=NAN) for i in range(5)])
    assert found.latencies["tpot_s"].at(50) == pytest.approx(0.02)
    assert found.tokens.num_first_tokens_estimated == 5


def test_the_stop_token_comes_with_the_finish_reason() -> None:
    # Three events with text, then the stop token: four tokens, 10 ms each.
    rows = [row(i, 0.0, [0.1, 0.11, 0.12], tokens=4, last_token_s=0.13) for i in range(5)]
    found = stats(rows)
    assert found.latencies["tpot_s"].at(50) == pytest.approx(0.01)
    assert found.latencies["e2e_s"].at(50) == pytest.approx(0.13)


def test_an_answer_of_one_token_has_no_tpot_and_no_gap() -> None:
    found = stats([row(i, 0.0, [0.1]) for i in range(6)])
    assert found.latencies["tpot_s"].n == 0
    assert found.latencies["inter_chunk_gap_s"].n == 0
    assert found.latencies["ttft_s"].n == 6


def test_gaps_are_pooled_and_the_worst_is_per_request() -> None:
    rows = [row(i, 0.0, [0.1, 0.12, 0.15]) for i in range(5)]
    found = stats(rows)
    gaps = found.latencies["inter_chunk_gap_s"]
    assert gaps.n == 10
    assert gaps.mean_of_succeeded == pytest.approx(0.025)
    assert found.latencies["worst_gap_s"].at(50) == pytest.approx(0.03)


def test_latency_counts_from_the_intended_and_from_the_sent_time() -> None:
    found = stats([row(i, 1.0, [1.5, 1.6], sent_s=1.2) for i in range(5)])
    assert found.latencies["ttft_s"].at(50) == pytest.approx(0.5)
    assert found.latencies["ttft_from_sent_s"].at(50) == pytest.approx(0.3)
    assert found.send_lag.at(99) == pytest.approx(0.2)


def test_the_wait_for_a_connection_is_no_lag_of_the_client() -> None:
    found = stats(
        [row(i, i, [i + 0.5, i + 0.6], sent_s=i + 0.2, connect_s=0.19) for i in range(20)]
    )
    assert found.send_lag.at(99) == pytest.approx(0.01)
    assert (found.connect_wait.n, found.connect_wait.at(50)) == (20, 0.19)
    assert found.latencies["ttft_s"].at(50) == pytest.approx(0.5)


def test_throughput_is_over_the_window_of_arrivals() -> None:
    # One request a second with ten tokens each, for 11 seconds: nothing of ramp or drain inside.
    rows = [row(i, float(i), [i + 0.05 * k for k in range(1, 11)]) for i in range(11)]
    rates = stats(rows).throughput
    assert (rates.window, rates.window_s) == ("arrivals", 10.0)
    assert rates.succeeded_rps == pytest.approx(1.0)
    assert rates.output_tokens_per_s == pytest.approx(10.0)
    assert rates.prompt_tokens_per_s == pytest.approx(10.0)
    assert rates.offered_rps == pytest.approx(1.0)


@pytest.mark.parametrize("num_warmup", [0, 3, 30])
def test_an_open_loop_has_the_rate_of_its_arrivals_however_long_its_requests(
    num_warmup: int,
) -> None:
    # Ten requests a second that last for two seconds each: the first end comes after two seconds.
    rows = [
        row(i, i / 10, [i / 10 + 0.2 * k for k in range(1, 11)], warmup=i < num_warmup)
        for i in range(100 + num_warmup)
    ]
    rates = stats(rows, is_open=True).throughput
    assert rates.window == "arrivals"
    assert rates.succeeded_rps == pytest.approx(10.0, rel=0.02)
    assert rates.output_tokens_per_s == pytest.approx(100.0, rel=0.02)
    assert rates.offered_rps == pytest.approx(10.0, rel=0.02)


def test_conversations_have_the_rates_of_the_time_in_which_they_arrive() -> None:
    # One conversation a second, each with five turns three seconds apart, for two minutes.
    turns = [
        replace(
            row(5 * i + turn, i + 3.0 * turn, [i + 3.0 * turn + 0.5]),
            session=np.array([i]), turn=np.array([turn]),
        )
        for i in range(120)
        for turn in range(5)
    ]  # fmt: skip
    rates = stats(turns, is_open=True).throughput
    assert rates.window_s == pytest.approx(119 - 12.5)
    assert rates.succeeded_rps == pytest.approx(5.0, rel=0.02)
    assert rates.offered_rps == pytest.approx(5.0, rel=0.02)


def test_each_turn_has_intervals_over_the_conversations() -> None:
    records = made_records(1200, rate_rps=2.0)
    records = replace(records, session=records.index // 2, turn=records.index % 2)
    window = window_of(records, None, is_open=True)
    found = statistics(
        records, SLO(), exact_tokens=None, window=window, num_turns=lambda _: 2
    ).sessions  # fmt: skip
    assert found is not None and [one.offered for one in found.turns] == [600, 600]
    for turn, one in enumerate(found.turns):
        low, high = one.ttft_s.ci95["p50"]
        ttft_s = (records.first_token_s - records.intended_s)[records.turn == turn]
        assert low is not None and high is not None and low < np.median(ttft_s) < high
        assert high - low < 0.02


def test_arrivals_that_are_too_short_for_a_rate_do_not_miss_its_floor() -> None:
    slo = SLO(min_request_throughput_rps=8.0)
    rows = [row(i, i / 10, [i / 10 + 2.0]) for i in range(21)]
    found = stats(rows, slo, is_open=True)
    assert found.throughput.window == "whole run"
    objectives = {one.name: one for one in judge_objectives(slo, found)}
    assert objectives["min_request_throughput_rps"].verdict == Verdict.INCONCLUSIVE
    burst = stats([row(i, 0.0, [0.1 * i + 0.1]) for i in range(21)], slo, is_open=True)
    objectives = {
        one.name: one for one in judge_objectives(SLO(min_request_throughput_rps=11.0), burst)
    }
    assert objectives["min_request_throughput_rps"].verdict == Verdict.FAIL


def test_a_burst_has_no_window_of_arrivals() -> None:
    rates = stats([row(i, 0.0, [0.5, 1.0]) for i in range(4)]).throughput
    assert (rates.window, rates.window_s) == ("whole run", 1.0)
    assert rates.output_tokens_per_s == pytest.approx(8.0)
    assert rates.offered_rps == pytest.approx(4.0)


def test_goodput_is_never_more_than_what_succeeded_in_the_window() -> None:
    # A closed loop of two slots: 40 requests of one second each, in two rows of twenty.
    rows = [row(i, float(i // 2), [i // 2 + 0.5, i // 2 + 1.0]) for i in range(40)]
    found = stats(rows, SLO(goodput_e2e_s=2.0, min_goodput_rps=1.0))
    rates = found.throughput
    assert rates.window_s == 19.0
    assert rates.succeeded_rps == pytest.approx(2.0)
    assert rates.goodput_rps == pytest.approx(2.0)
    assert rates.offered_rps == pytest.approx(2.0)
    assert found.good is not None and found.good.value == 1.0


def test_warmup_is_part_of_the_load_but_not_of_the_figures() -> None:
    rows = [row(0, 0.0, [5.5, 5.6], warmup=True)]
    rows += [row(i, float(i), [i + 0.1, i + 0.2]) for i in range(1, 12)]
    found = stats(rows)
    assert (found.num_offered, found.num_warmup) == (11, 1)
    assert found.latencies["ttft_s"].at(50) == pytest.approx(0.1)
    # Ten measured ends in the window of ten seconds, and the warm-up request that ends in it.
    assert found.throughput.succeeded_rps == pytest.approx(1.1)


def test_goodput_counts_requests_that_meet_every_limit() -> None:
    rows = [row(i, float(i), [i + 0.1, i + 0.2]) for i in range(8)]
    rows += [row(8, 8.0, [8.9, 9.0]), row(9, 9.0, [9.1, 10.5]), row(10, 10.0, [], state=FAILED)]
    slo = SLO(goodput_ttft_s=0.5, goodput_e2e_s=1.0, min_goodput_share=0.5)
    found = stats(rows, slo)
    assert found.good is not None and found.good.value == pytest.approx(8 / 11)
    assert found.throughput.goodput_rps == pytest.approx(8 / 10)
    assert stats(rows).throughput.goodput_rps is None and stats(rows).good is None


def test_failures_in_a_row_count_as_few() -> None:
    rng = np.random.default_rng(2)
    apart = np.zeros(1000, np.bool_)
    apart[rng.choice(1000, 50, replace=False)] = True
    together = np.zeros(1000, np.bool_)
    together[400:450] = True
    one, other = share_of(apart), share_of(together)
    assert one.value == other.value == 0.05
    assert one.num_independent == 1000
    assert other.num_independent < 100
    assert other.ci95[0] < one.ci95[0] and other.ci95[1] > one.ci95[1]
    none = share_of(np.zeros(60, np.bool_))
    assert (none.num_independent, none.ci95[0]) == (60, 0.0)
    assert share_of(np.zeros(0, np.bool_)).ci95 == (0.0, 1.0)


def test_requests_that_are_good_because_of_a_queue_depend_on_each_other_as_it_does() -> None:
    waves = np.sin(np.arange(600) / 30)  # as many as six waves, and never above the limit
    share = share_of(np.ones(600, np.bool_), np.empty(0), 2 + waves)
    assert share.value == 1.0
    assert share.num_independent < 30
    assert share.ci95[0] < 0.9


def test_token_counts_that_contradict_are_counted() -> None:
    rows = [
        row(0, 0.0, [0.1, 0.2], tokens=2),
        row(1, 0.0, [0.1, 0.2], tokens=1),
        row(2, 0.0, [0.1, 0.2], tokens=NAN),
        row(3, 0.0, [0.1], tokens=1),
    ]
    tokens = stats(rows, exact_tokens=np.full(4, 2.0)).tokens
    assert (tokens.num_more_events_than_tokens, tokens.num_first_tokens_estimated) == (1, 0)
    assert tokens.num_without_usage == 1
    assert tokens.num_wrong_length == 2
    assert tokens.num_output_tokens == 4


def test_merging_keeps_every_row_and_its_events_in_order() -> None:
    rows = [row(i, float(i), [i + 0.1 * k for k in range(1, i + 2)]) for i in range(6)]
    together = join_records(rows)
    apart = join_records([join_records(rows[1::2]), join_records(rows[::2])])
    for name in vars(together):
        np.testing.assert_array_equal(getattr(together, name), getattr(apart, name), err_msg=name)
    assert len(together) == 6


def test_a_refused_connection_is_not_an_arrival_that_the_client_held() -> None:
    sent = [row(i, i * 0.1, [i * 0.1 + 0.05]) for i in range(20)]
    refused = [row(i, i * 0.1, [], state=FAILED, error="connection_refused", sent_s=NAN)
               for i in range(20, 40)]  # fmt: skip
    found = stats(sent + refused)
    assert found.arrivals_scheduled == found.arrivals_delivered
    assert found.arrivals_scheduled.num_arrivals == 20
    assert found.num_offered == 40
    # One that the client never began is missing among the delivered.
    never = [row(i, i * 0.1, [], state=UNFINISHED, sent_s=NAN) for i in range(20, 40)]
    found = stats(sent + never)
    assert found.arrivals_scheduled.num_arrivals == 40
    assert found.arrivals_delivered.num_arrivals == 20
    # Unless the run was given up before its time came.
    found = stats(sent + never, ended_early=True)
    assert found.arrivals_scheduled == found.arrivals_delivered


def test_requests_that_overlap_count_as_few_even_where_all_are_the_same() -> None:
    # 100 in flight: blocks of 200, and eight independent ones in each.
    together = share_of(np.ones(300, np.bool_), np.full(300, 0.1), block=block_length(100.0))
    assert together.num_independent == pytest.approx(300 * 8 / 200)
    assert together.ci95[0] == pytest.approx(12 / (12 + 3.841459))
    assert together.num_needed == 5 * 200
    assert share_of(np.ones(300, np.bool_), np.full(300, 0.1), block=4).num_independent == 300


def test_what_keeps_to_an_objective_is_counted_by_its_limit() -> None:
    rows = [row(i, float(i), [i + 0.01 * (i + 1), i + 0.9]) for i in range(40)]
    rows.append(row(40, 40.0, [], state=FAILED))
    found = stats(rows, SLO(ttft_s={"p50": 0.2, "p90": 0.4})).within
    assert found.keys() == {"ttft_s.p50", "ttft_s.p90"}
    assert found["ttft_s.p50"].value == pytest.approx(20 / 41)
    assert found["ttft_s.p90"].value == pytest.approx(40 / 41)  # a failed request keeps to none
