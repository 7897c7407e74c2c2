from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loadtest.arrivals.schedule import Dispersion
from loadtest.calibration.calibrate import Calibration
from loadtest.config import SLO, LoadTestConfig, WorkloadConfig
from loadtest.judging.intervals import SteadyState
from loadtest.judging.statistics import Share, Statistics, Throughput, Tokens, figure, share_of
from loadtest.judging.verdict import Judgement, judge, worst
from tuneline.core.statistics import wilson_interval

CONFIG = LoadTestConfig()


def lags(seconds: float) -> Any:
    return figure(np.full(50, seconds), withhold=False)


def share(count: int, n: int, num_independent: float | None = None) -> Share:
    independent = n if num_independent is None else num_independent
    return Share(count / n, n, independent, wilson_interval(count / n, independent), 1)


def measured(num: int = 400, **changes: Any) -> Statistics:
    values = figure(np.full(num, 0.1))
    names = (
        "ttft_s", "ttft_from_sent_s", "tpot_s", "inter_chunk_gap_s", "worst_gap_s", "e2e_s",
        "e2e_from_sent_s",
    )  # fmt: skip
    num_bad = changes.get("num_failed", 0) + changes.get("num_unfinished", 0)
    stats = Statistics(
        num_offered=num, num_succeeded=num, num_failed=0, num_unfinished=0, num_warmup=0,
        failed=share(num_bad, num), good=None, within={}, errors={}, retry_after_s=[],
        latencies=dict.fromkeys(names, values),
        throughput=Throughput("arrivals", 10.0, 40.0, 40.0, 400.0, 100.0, None),
        tokens=Tokens(num * 10, num * 5, None, num * 10, 0, 0, 0, 0, 0),
        send_lag=lags(0.0001),
        arrivals_scheduled=Dispersion(num, 40.0, 1.0, 1.0),
        arrivals_delivered=Dispersion(num, 40.0, 1.0, 1.0),
        mean_in_flight=4.0,
        steady_state=SteadyState(0, 0.0, True, 0.0, False),
    )  # fmt: skip
    return replace(stats, **changes)


def verdict(
    stats: Statistics, *, config: LoadTestConfig = CONFIG, loop_lag_s: float = 0.0001,
    kernel_clock: bool = True, open_loop: bool = True, evidence: dict[str, Any] | None = None,
    host: dict[str, float] | None = None, read_lag_s: float = 0.0001, values: Any = None,
    **slo: float | None,
) -> Judgement:  # fmt: skip
    client = {
        **(host or {}),
        "loop_lag_s": lags(loop_lag_s),
        "read_lag_s": lags(read_lag_s),
        "num_reads": 100,
        "num_reads_kernel_clock": 100 if kernel_clock else 0,
    }
    objectives = SLO.model_validate(slo)
    latencies = {} if values is None else {"ttft_s": values}
    within = {
        name: share_of(of <= limit, of)
        for name, limit in slo.items()
        if name.endswith("_s") and "_p" in name and limit is not None
        for of in [latencies.get(name[:4] + "_s", np.full(stats.num_offered, 0.1))]
    }
    stats = replace(stats, within=within)
    return judge(config, objectives, stats, client, open_loop=open_loop, **(evidence or {}))


@pytest.mark.parametrize("metric", ["ttft", "tpot", "e2e"])
@pytest.mark.parametrize("q", [50, 90, 99])
def test_a_latency_objective_is_met_up_to_its_limit(metric: str, q: int) -> None:
    name = f"{metric}_p{q}_s"
    limit: dict[str, Any] = {name: 0.1}
    assert verdict(measured(), **limit).verdict == "PASS"
    limit = {name: 0.099}
    failed = verdict(measured(), **limit)
    assert failed.verdict == "FAIL"
    assert failed.problems[0].startswith(f"{name}: 0.1 s, at most 0.099 s is allowed (N = 400); 0.")
    assert failed.problems[0].endswith(f"and {q} % must")


def test_too_few_requests_are_inconclusive_not_a_pass() -> None:
    found = verdict(measured(100), ttft_p99_s=1.0)
    assert found.verdict == "INCONCLUSIVE"
    assert "at least 300 are needed" in found.problems[0]


def test_infinite_latency_fails_whatever_the_number() -> None:
    values = figure(np.concatenate([np.full(70, 0.1), np.full(30, np.inf)]))
    stats = measured(100, num_succeeded=70, num_failed=30, errors={"http_500": 30})
    stats = replace(stats, latencies={**stats.latencies, "ttft_s": values})
    found = verdict(stats, ttft_p90_s=1.0, max_error_rate=0.5)
    assert found.verdict == "FAIL"


def test_the_error_rate_counts_failed_and_unfinished() -> None:
    stats = measured(100, num_succeeded=97, num_failed=2, num_unfinished=1, errors={"http_500": 2})
    assert verdict(stats, max_error_rate=0.1).verdict == "PASS"
    found = verdict(stats, max_error_rate=0.01)
    assert found.verdict == "FAIL"
    assert "3 of 100 requests failed (2 http_500, 1 unfinished)" in found.problems[0]


def test_an_error_rate_that_few_requests_cannot_tell_is_inconclusive() -> None:
    # Wilson's interval of 0 in 60 ends at 1.96^2 / (60 + 1.96^2) = 6.02 %.
    none = measured(60, num_succeeded=60)
    assert verdict(none, max_error_rate=0.0).verdict == "PASS"
    assert verdict(none, max_error_rate=0.061).verdict == "PASS"
    found = verdict(none, max_error_rate=0.01)
    assert found.verdict == "INCONCLUSIVE"
    assert "at least 381 requests to tell" in found.problems[0]
    assert verdict(measured(380, num_succeeded=380), max_error_rate=0.01).verdict == "INCONCLUSIVE"
    assert verdict(measured(381, num_succeeded=381), max_error_rate=0.01).verdict == "PASS"
    one = measured(60, num_succeeded=59, num_failed=1, errors={"http_500": 1})
    assert verdict(one, max_error_rate=0.0).verdict == "FAIL"


def test_an_error_rate_is_held_against_the_requests_that_count_alone() -> None:
    # Five of 1,000, in one run: as sure as a hundredth of them would be.
    together = measured(1000, num_succeeded=995, num_failed=5, failed=share(5, 1000, 10.0))
    apart = replace(together, failed=share(5, 1000))
    assert verdict(apart, max_error_rate=0.02).verdict == "PASS"
    found = verdict(together, max_error_rate=0.02)
    assert found.verdict == "INCONCLUSIVE"
    assert "they count as 10" in found.problems[0]
    objective = found.objectives[0]
    assert objective.num_needed is not None and objective.num_needed > 1000


def test_a_goodput_share_is_judged_by_its_interval() -> None:
    limits: dict[str, Any] = {"goodput_e2e_s": 1.0, "min_goodput_share": 0.9}
    limits["max_error_rate"] = None
    # Wilson's interval of n in n begins at n / (n + 1.96^2): 0.9 takes 35.
    for num, expected in ((34, "INCONCLUSIVE"), (35, "PASS")):
        assert verdict(measured(num, good=share(num, num)), **limits).verdict == expected
    # 380 of 400: 92.4 to 96.7 %; as 40 requests: 83.5 to 98.6 %.
    assert verdict(measured(good=share(380, 400)), **limits).verdict == "PASS"
    found = verdict(measured(good=share(380, 400, 40.0)), **limits)
    assert found.verdict == "INCONCLUSIVE"
    assert "95.00% of 400 requests are good, 95 % interval 83.5" in found.problems[0]
    [objective] = found.objectives
    assert objective.num_needed is not None and objective.num_needed > 400
    assert verdict(measured(good=share(340, 400)), **limits).verdict == "FAIL"
    # Where all must be good, those that were seen decide.
    all_of_them = {**limits, "min_goodput_share": 1.0}
    assert verdict(measured(good=share(400, 400)), **all_of_them).verdict == "PASS"
    assert verdict(measured(good=share(399, 400)), **all_of_them).verdict == "FAIL"


def test_a_goodput_rate_is_as_sure_as_its_share() -> None:
    rates = Throughput("arrivals", 10.0, 40.0, 40.0, 400.0, 100.0, 38.0)
    found = measured(throughput=rates, good=share(380, 400))
    # 38 a second of 40, and the share's interval of 92.4 to 96.7 % around 95 %.
    for limit, expected in ((36.9, "PASS"), (37.5, "INCONCLUSIVE"), (38.7, "FAIL")):
        judged = verdict(found, goodput_e2e_s=1.0, min_goodput_rps=limit)
        assert judged.verdict == expected, limit
    # All of what is offered: those that were seen decide. Few that overlap decide nothing yet.
    every = measured(throughput=replace(rates, goodput_rps=40.0), good=share(400, 400))
    assert verdict(every, goodput_e2e_s=1.0, min_goodput_rps=40.0).verdict == "PASS"
    assert verdict(found, goodput_e2e_s=1.0, min_goodput_rps=40.0).verdict == "FAIL"
    few = replace(share(20, 20), num_needed=80)
    judged = verdict(measured(20, throughput=rates, good=few), goodput_e2e_s=1.0, min_goodput_rps=1)
    assert judged.verdict == "INCONCLUSIVE"
    assert "at least 80 requests to tell" in judged.problems[0]
    none = measured(throughput=replace(rates, goodput_rps=0.0), good=None)
    judged = verdict(none, goodput_e2e_s=1.0, min_goodput_rps=1.0, min_goodput_share=1.0)
    assert judged.verdict == "INCONCLUSIVE"
    nowhere = replace(found, throughput=replace(rates, goodput_rps=None))
    judged = verdict(nowhere, goodput_e2e_s=1.0, min_goodput_rps=1.0)
    assert judged.verdict == "INCONCLUSIVE"


def test_throughput_objectives() -> None:
    assert verdict(measured(), min_output_throughput_tps=400).verdict == "PASS"
    assert verdict(measured(), min_output_throughput_tps=401).verdict == "FAIL"
    assert verdict(measured(), min_request_throughput_rps=41).verdict == "FAIL"
    no_window = replace(measured().throughput, succeeded_rps=None)
    found = verdict(measured(throughput=no_window), min_request_throughput_rps=41)
    assert found.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"send_lag": lags(0.003)}, "sent late"),
        ({"num_unfinished": 1}, "accounted for"),
        ({"arrivals_delivered": Dispersion(400, 39.0, 1.0, 1.0)}, "delivered 39"),
        ({"arrivals_delivered": Dispersion(400, 40.0, 1.2, 1.0)}, "coefficient of variation"),
        ({"arrivals_delivered": Dispersion(400, 40.0, 1.0, 4.0)}, "index of dispersion"),
        ({"tokens": Tokens(10, 10, None, 10, 0, 3, 0, 0, 0)}, "more text events"),
        ({"tokens": Tokens(10, 10, None, 10, 0, 0, 4, 0, 0)}, "ignore_eos"),
    ],
)
def test_a_run_that_says_nothing_of_the_server_is_invalid(
    changes: dict[str, Any], reason: str
) -> None:
    # Even with an objective that is missed: the numbers are void either way.
    found = verdict(measured(**changes), ttft_p90_s=0.01)
    assert found.verdict == "INVALID"
    assert any(reason in problem for problem in found.problems)
    assert found.is_worth_repeating is not ("tokens" in changes or "num_unfinished" in changes)


def test_a_busy_loop_harms_less_where_the_kernel_stamps_the_reads() -> None:
    assert verdict(measured(), loop_lag_s=0.01, kernel_clock=True).verdict == "PASS"
    assert verdict(measured(), loop_lag_s=0.01, kernel_clock=False).verdict == "INVALID"
    # Later than the events are apart: they run together.
    assert verdict(measured(), loop_lag_s=0.2, kernel_clock=True).verdict == "INVALID"


def test_the_budget_follows_the_tightest_objective_or_the_option() -> None:
    late = measured(send_lag=lags(0.015))
    assert verdict(late, ttft_p90_s=1.0).verdict == "PASS"  # 2 % of 1 s
    assert verdict(late, ttft_p90_s=0.5).verdict == "INVALID"
    config = LoadTestConfig(max_client_lag_s=0.02)
    assert verdict(late, config=config, ttft_p90_s=0.5).verdict == "PASS"


def test_missing_usage_voids_only_what_needs_it() -> None:
    stats = measured(tokens=Tokens(0, 0, None, 10, 5, 0, 0, 0, 0))
    found = verdict(stats, ttft_p90_s=1.0)
    assert found.verdict == "PASS"
    assert "no usage" in found.warnings[0]
    assert verdict(stats, tpot_p90_s=1.0).verdict == "INVALID"


def test_too_few_requests_for_the_load_in_flight_are_no_pass() -> None:
    # 100 in flight: blocks of 200, and five of them before their dependence can be seen.
    def judged(num: int, limit: float) -> Judgement:
        values = np.full(num, 0.1)
        stats = replace(measured(num), within={
            "ttft_p50_s": share_of(values <= limit, values, block=200)
        })  # fmt: skip
        objectives = SLO.model_validate({"ttft_p50_s": limit})
        client = {
            "loop_lag_s": lags(0.0001), "read_lag_s": lags(0.0001), "num_reads": 100,
            "num_reads_kernel_clock": 100,
        }  # fmt: skip
        return judge(CONFIG, objectives, stats, client, open_loop=True)

    few = judged(300, 0.12)
    assert few.verdict == "INCONCLUSIVE"
    assert "at least 1000 requests to tell" in few.problems[0]
    assert judged(300, 0.05).verdict == "FAIL"
    assert judged(1000, 0.12).verdict == "PASS"
    assert judged(300, 2.0).verdict == "PASS", "far below its limit"


def test_events_that_the_client_let_run_together_void_a_run() -> None:
    stats = measured(tokens=Tokens(4000, 2000, None, 4000, 0, 0, 0, 0, 2000))
    assert verdict(stats).verdict == "PASS", "a server may write several at once"
    found = verdict(stats, evidence=None, read_lag_s=0.5)
    assert found.verdict == "INVALID"
    assert "the client read up to 500.0 ms late" in found.problems[0]


def test_a_client_without_sockets_says_nothing_of_the_server() -> None:
    failed: dict[str, Any] = {"num_succeeded": 399, "num_failed": 1}
    ours = measured(**failed, errors={"client_exhausted": 1})
    assert verdict(ours, max_error_rate=0.1).verdict == "INVALID"
    servers = measured(**failed, errors={"connection_failed": 1})
    assert verdict(servers, max_error_rate=0.1).verdict == "PASS"


def test_the_worst_verdict_stands_for_all() -> None:
    assert worst(["PASS", "FAIL", "INCONCLUSIVE"]) == "FAIL"
    assert worst(["PASS", "INVALID", "FAIL"]) == "INVALID"
    assert worst(["PASS", "INCONCLUSIVE"]) == "INCONCLUSIVE"


def with_ttft(values: Any) -> Statistics:
    return replace(measured(), latencies={**measured().latencies, "ttft_s": figure(values)})


def test_a_limit_between_two_certainties_is_inconclusive() -> None:
    values = np.random.default_rng(2).permutation(np.linspace(0.1, 0.5, 400))
    stats = with_ttft(values)
    # Of 400 by Wilson: 372 are above 90 %, and 348 below it.
    for kept, expected in ((372, "PASS"), (371, "INCONCLUSIVE"), (349, "INCONCLUSIVE"),
                           (347, "FAIL")):  # fmt: skip
        found = verdict(stats, values=values, ttft_p90_s=float(np.sort(values)[kept - 1]))
        assert found.verdict == expected, (kept, found.problems)
    assert "86.8% of the requests do, 95 % interval 83." in found.problems[0]
    assert "and 90 % must" in found.problems[0]


def test_a_percentile_far_below_its_limit_passes_though_few_values_cannot_tell() -> None:
    drifting = 0.1 + 0.2 * np.linspace(0, 1, 300)
    stats = with_ttft(drifting)
    assert verdict(stats, values=drifting, ttft_p90_s=20.0).verdict == "PASS"
    found = verdict(stats, values=drifting, ttft_p90_s=0.4)
    assert found.verdict == "INCONCLUSIVE"
    [objective] = [one for one in found.objectives if one.name == "ttft_p90_s"]
    assert objective.num_needed is not None and objective.num_needed > 300
    assert f"at least {objective.num_needed} requests to tell" in found.problems[0]
    # As many as 300 that do not depend on one another can tell.
    apart = np.random.default_rng(0).permutation(drifting)
    assert verdict(with_ttft(apart), values=apart, ttft_p90_s=0.4).verdict == "PASS"
    assert verdict(with_ttft(apart), values=apart, ttft_p90_s=0.2).verdict == "FAIL"


def test_a_queue_that_grows_is_no_pass() -> None:
    stats = measured(steady_state=SteadyState(0, 0.0, True, 2.0, True))
    found = verdict(stats, ttft_p90_s=1.0)
    assert found.verdict == "INCONCLUSIVE"
    assert "does not keep up" in found.problems[0]
    assert verdict(stats, open_loop=False, ttft_p90_s=1.0).verdict == "PASS"


def calibration(**changes: Any) -> Calibration:
    well = Calibration(100, 8, None, 0.0002, 0.0003, 0.0004, 0.0, 0.1, 0.02, 0.1, [])
    return replace(well, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ttft_bias_p50_s": 0.004}, "ttft_bias_p50_s is 4.0 ms"),
        ({"ttft_bias_p90_s": -0.004}, "ttft_bias_p90_s is -4.0 ms"),
        ({"problems": ["2 requests: 1 succeeded"]}, "calibration: 2 requests"),
    ],
)
def test_a_calibration_that_fails_voids_the_run(changes: dict[str, Any], reason: str) -> None:
    assert verdict(measured(), evidence={"calibration": calibration()}).verdict == "PASS"
    found = verdict(measured(), evidence={"calibration": calibration(**changes)})
    assert found.verdict == "INVALID"
    assert reason in found.problems[0]


def test_a_hit_rate_other_than_the_declared_one_voids_the_run() -> None:
    config = LoadTestConfig(workload=WorkloadConfig(prefix_hit_rate=0.5))
    for rate, expected in ((0.5, "PASS"), (0.54, "PASS"), (0.6, "INVALID"), (None, "INVALID")):
        evidence = {"prefix_hit_rate": rate}
        assert verdict(measured(), config=config, evidence=evidence).verdict == expected
    assert verdict(measured(), evidence={"prefix_hit_rate": 0.9}).verdict == "PASS"


def test_a_machine_that_took_the_cpu_away_voids_the_run() -> None:
    assert verdict(measured(), host={"steal_share": 0.05}).verdict == "PASS"
    assert verdict(measured(), host={"steal_share": 0.2}).verdict == "INVALID"
    assert verdict(measured(), host={"throttled_share": 0.05}).verdict == "INVALID"
