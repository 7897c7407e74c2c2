from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loadtest.config import SLO, LoadTestConfig
from loadtest.judging.latency import distribution, share_of
from loadtest.judging.objectives import latency_objective
from loadtest.judging.server_metrics import reconcile
from loadtest.judging.statistics import Statistics
from loadtest.judging.validity import left_out_warnings
from loadtest.judging.verdict import Evidence, Judgement, judge, worst
from loadtest.percentiles import percentile_of
from loadtest.report.answer_schema import Endings
from loadtest.report.part import Distribution, Share
from loadtest.report.schema import Calibration, Client, Dispersion, SteadyState, Throughput, Tokens
from loadtest.workload_config import WorkloadConfig
from tuneline.core.statistics import wilson_interval
from tuneline.core.verdict import Verdict

CONFIG = LoadTestConfig()
BOUNDS = [name for name in SLO.model_fields if name.startswith(("min_", "max_"))]
NO_HITS = np.zeros(0, np.bool_)


def lags(seconds: float) -> Distribution:
    return distribution(np.full(50, seconds), withhold=False)


def share(count: int, n: int, num_independent: float | None = None, num_needed: int = 1) -> Share:
    independent = n if num_independent is None else num_independent
    return Share(
        value=count / n,
        n=n,
        num_independent=independent,
        ci95=wilson_interval(count / n, independent),
        num_needed=num_needed,
    )


def throughput(**changes: float | None) -> Throughput:
    values: dict[str, Any] = {
        "window": "arrivals", "window_s": 10.0, "offered_rps": 40.0, "succeeded_rps": 40.0,
        "output_tokens_per_s": 400.0, "prompt_tokens_per_s": 100.0, "goodput_rps": None,
    }  # fmt: skip
    return Throughput(**{**values, **changes})


def tokens(num: int = 10, **changes: int | None) -> Tokens:
    values: dict[str, Any] = {
        "num_output_tokens": num, "num_prompt_tokens": num, "num_cached_prompt_tokens": None,
        "num_events": num, "num_without_done": 0, "num_without_usage": 0,
        "num_more_events_than_tokens": 0, "num_wrong_length": 0,
        "num_first_tokens_estimated": 0, "num_merged_events": 0,
    }  # fmt: skip
    return Tokens(**{**values, **changes})


def dispersion(num: int, rate_rps: float = 40.0, cv: float = 1.0, index: float = 1.0) -> Dispersion:
    return Dispersion(num_arrivals=num, rate_rps=rate_rps, gap_cv=cv, index_of_dispersion=index)


def steady(growth: float = 0.0, *, growing: bool = False) -> SteadyState:
    return SteadyState(num_discarded=0, from_s=0.0, found=True, growth=growth, growing=growing)


def measured(num: int = 400, **changes: Any) -> Statistics:
    values = distribution(np.full(num, 0.1))
    names = (
        "ttft_s", "ttft_from_sent_s", "tpot_s", "inter_chunk_gap_s", "worst_gap_s", "e2e_s",
        "e2e_from_sent_s",
    )  # fmt: skip
    num_bad = changes.get("num_failed", 0) + changes.get("num_unfinished", 0)
    stats = Statistics(
        num_offered=num, num_succeeded=num, num_failed=0, num_unfinished=0, num_warmup=0,
        failed=share(num_bad, num), good=None, within={}, errors={}, retry_after_s=[],
        latencies=dict.fromkeys(names, values),
        throughput=throughput(), tokens=tokens(num * 10),
        send_lag=lags(0.0001), connect_wait=distribution(np.zeros(0), withhold=False),
        arrivals_scheduled=dispersion(num), arrivals_delivered=dispersion(num),
        mean_in_flight=4.0,
        steady_state=steady(),
    )  # fmt: skip
    return replace(stats, **changes)


def client_of(send_lag: Distribution, **changes: Any) -> Client:
    values: dict[str, Any] = {
        "num_workers": 1, "send_lag_s": send_lag, "loop_lag_s": lags(0.0001),
        "connect_wait_s": distribution(np.zeros(0), withhold=False),
        "read_lag_s": lags(0.0001), "cpu_s": 1.0, "parse_cpu_s": 0.1, "num_reads": 100,
        "num_reads_kernel_clock": 100, "num_connects_in_window": 0, "num_spares_opened": 0,
        "num_resent": 0, "steal_share": None, "throttled_share": None, "nice": 0,
    }  # fmt: skip
    return Client(**{**values, **changes})


def verdict(
    stats: Statistics, *, config: LoadTestConfig = CONFIG, loop_lag_s: float = 0.0001,
    kernel_clock: bool = True, open_loop: bool = True, evidence: dict[str, Any] | None = None,
    host: dict[str, float] | None = None, read_lag_s: float = 0.0001, values: Any = None,
    **slo: Any,
) -> Judgement:  # fmt: skip
    client = client_of(
        stats.send_lag, loop_lag_s=lags(loop_lag_s), read_lag_s=lags(read_lag_s),
        num_reads_kernel_clock=100 if kernel_clock else 0, **(host or {}),
    )  # fmt: skip
    objectives = SLO.model_validate(slo)
    latencies = {} if values is None else {"ttft_s": values}
    within = {
        f"{metric}.{name}": share_of(of <= limit, of)
        for metric, limits in slo.items()
        if isinstance(limits, dict)
        for name, limit in limits.items()
        for of in [latencies.get(metric, np.full(stats.num_offered, 0.1))]
    }
    stats = replace(stats, within=within)
    found = Evidence(**(evidence or {}))
    return judge(config, objectives, stats, client, open_loop=open_loop, evidence=found)


@pytest.mark.parametrize("metric", ["ttft_s", "tpot_s", "worst_gap_s", "e2e_s"])
@pytest.mark.parametrize("name", ["p50", "p75", "p90", "p95", "p99", "p99.9"])
def test_a_latency_objective_is_met_up_to_its_limit(metric: str, name: str) -> None:
    q = percentile_of(name)
    every = distribution(np.full(4000, 0.1), also=[q])
    stats = measured(4000)
    stats = replace(stats, latencies=dict.fromkeys(stats.latencies, every))
    holds: dict[str, Any] = {metric: {name: 0.1}}
    assert verdict(stats, **holds).verdict == "PASS"
    misses: dict[str, Any] = {metric: {name: 0.099}}
    failed = verdict(stats, **misses)
    assert failed.verdict == "FAIL"
    [objective] = [one for one in failed.objectives if one.name == f"{metric}.{name}"]
    assert objective.limit == 0.099
    assert objective.measured == pytest.approx(0.1)
    begin = f"{metric}.{name}: 0.1 s; at most 0.099 s is allowed (N = 4000); 0."
    assert failed.problems[0].startswith(begin)
    assert failed.problems[0].endswith(f"{q:g} % must")


def test_too_few_requests_are_inconclusive_not_a_pass() -> None:
    found = verdict(measured(100), ttft_s={"p99": 1.0})
    assert found.verdict == "INCONCLUSIVE"
    assert "at least 299 are needed" in found.problems[0]


def test_infinite_latency_fails_whatever_the_number() -> None:
    values = distribution(np.concatenate([np.full(70, 0.1), np.full(30, np.inf)]))
    stats = measured(100, num_succeeded=70, num_failed=30, errors={"http_500": 30})
    stats = replace(stats, latencies={**stats.latencies, "ttft_s": values})
    found = verdict(stats, ttft_s={"p90": 1.0}, max_error_rate=0.5)
    assert found.verdict == "FAIL"


def test_a_warning_counts_the_entries_that_were_not_sent_by_reason() -> None:
    assert left_out_warnings({}) == []
    (few,) = left_out_warnings({"it is late": 2, "it is odd": 1})
    assert few == ("3 entries of the workload's file were not sent: 2 x it is late; 1 x it is odd")
    (many,) = left_out_warnings({f"reason {number}": 9 - number for number in range(7)})
    assert many.startswith("42 entries") and many.endswith("5 x reason 4; 7 x other reasons")


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
    assert "needs at least 381 requests" in found.problems[0]
    assert verdict(measured(380, num_succeeded=380), max_error_rate=0.01).verdict == "INCONCLUSIVE"
    assert verdict(measured(381, num_succeeded=381), max_error_rate=0.01).verdict == "PASS"
    one = measured(60, num_succeeded=59, num_failed=1, errors={"http_500": 1})
    assert verdict(one, max_error_rate=0.0).verdict == "FAIL"


def test_an_error_rate_counts_only_the_requests_that_count() -> None:
    # Five of 1,000, in one run: as sure as a hundredth of them would be.
    together = measured(1000, num_succeeded=995, num_failed=5, failed=share(5, 1000, 10.0))
    apart = replace(together, failed=share(5, 1000))
    assert verdict(apart, max_error_rate=0.02).verdict == "PASS"
    found = verdict(together, max_error_rate=0.02)
    assert found.verdict == "INCONCLUSIVE"
    assert "they count as 10" in found.problems[0]
    objective = found.objectives[0]
    assert objective.num_needed is not None and objective.num_needed > 1000


def test_near_a_limit_the_requests_of_a_steady_share_are_named() -> None:
    # Wilson's interval of 0.5 % ends at 1 % with 1.96^2 * 0.01 * 0.99 / 0.005^2 = 1,521 requests.
    few = measured(1000, num_succeeded=995, num_failed=5, failed=share(5, 1000))
    (objective,) = verdict(few, max_error_rate=0.01).objectives
    assert "at least 1001 requests, and about 1,500 if the share stays" in str(objective.reason)
    more = measured(1600, num_succeeded=1592, num_failed=8, failed=share(8, 1600))
    assert verdict(more, max_error_rate=0.01).verdict == "PASS"
    at_limit = measured(1000, num_succeeded=990, num_failed=10, failed=share(10, 1000))
    (objective,) = verdict(at_limit, max_error_rate=0.01).objectives
    assert "and more as long as the share is at the limit" in str(objective.reason)


def test_an_answer_that_comes_whole_is_reconciled_once() -> None:
    server: dict[str, float | None] = {
        "generation_tokens": 0.0, "mean_ttft_s": 1.0, "mean_e2e_s": 1.0,
    }  # fmt: skip
    rows, warnings = reconcile(server, {**server, "mean_ttft_s": 1.5, "mean_e2e_s": 1.5})
    assert [row.name for row in rows] == ["generation_tokens", "mean_e2e_s"]
    (warning,) = warnings
    assert warning.startswith("mean_e2e_s: 1.5 s by the client, 1 by the server (+50%)")


GOODPUT: dict[str, Any] = {"goodput_e2e_s": 1.0, "min_goodput_share": 0.9, "max_error_rate": None}


# Wilson's interval of n in n begins at n / (n + 1.96^2): 0.9 takes 35.
@pytest.mark.parametrize(("num", "expected"), [(34, "INCONCLUSIVE"), (35, "PASS")])
def test_good_requests_only_pass_if_they_are_many(num: int, expected: str) -> None:
    assert verdict(measured(num, good=share(num, num)), **GOODPUT).verdict == expected


def test_a_goodput_share_is_judged_by_its_interval() -> None:
    limits = GOODPUT
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


# 38 a second of 40, and the share's interval of 92.4 to 96.7 % around 95 %.
@pytest.mark.parametrize(
    ("limit", "expected"), [(36.9, "PASS"), (37.5, "INCONCLUSIVE"), (38.7, "FAIL")]
)
def test_a_goodput_rate_has_the_interval_of_its_share(limit: float, expected: str) -> None:
    found = measured(throughput=throughput(goodput_rps=38.0), good=share(380, 400))
    assert verdict(found, goodput_e2e_s=1.0, min_goodput_rps=limit).verdict == expected


def test_a_goodput_rate_is_as_sure_as_its_share() -> None:
    rates = throughput(goodput_rps=38.0)
    found = measured(throughput=rates, good=share(380, 400))
    # All of what is offered: those that were seen decide. Few that overlap decide nothing yet.
    every = measured(throughput=throughput(goodput_rps=40.0), good=share(400, 400))
    assert verdict(every, goodput_e2e_s=1.0, min_goodput_rps=40.0).verdict == "PASS"
    assert verdict(found, goodput_e2e_s=1.0, min_goodput_rps=40.0).verdict == "FAIL"
    few = share(20, 20, num_needed=80)
    judged = verdict(measured(20, throughput=rates, good=few), goodput_e2e_s=1.0, min_goodput_rps=1)
    assert judged.verdict == "INCONCLUSIVE"
    assert "needs at least 80 requests" in judged.problems[0]
    none = measured(throughput=throughput(goodput_rps=0.0), good=None)
    judged = verdict(none, goodput_e2e_s=1.0, min_goodput_rps=1.0, min_goodput_share=1.0)
    assert judged.verdict == "INCONCLUSIVE"
    nowhere = replace(found, throughput=throughput(goodput_rps=None))
    judged = verdict(nowhere, goodput_e2e_s=1.0, min_goodput_rps=1.0)
    assert judged.verdict == "INCONCLUSIVE"


def test_throughput_objectives() -> None:
    assert verdict(measured(), min_output_throughput_tps=400).verdict == "PASS"
    assert verdict(measured(), min_output_throughput_tps=401).verdict == "FAIL"
    assert verdict(measured(), min_request_throughput_rps=41).verdict == "FAIL"
    no_window = throughput(succeeded_rps=None)
    found = verdict(measured(throughput=no_window), min_request_throughput_rps=41)
    assert found.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"send_lag": lags(0.003)}, "sent late"),
        ({"num_unfinished": 1}, "have an end"),
        ({"arrivals_delivered": dispersion(400, 39.0)}, "delivered 39"),
        ({"arrivals_delivered": dispersion(400, cv=1.2)}, "coefficient of variation"),
        ({"arrivals_delivered": dispersion(400, index=4.0)}, "index of dispersion"),
        ({"tokens": tokens(num_wrong_length=4)}, "ignore_eos"),
    ],
)
def test_a_run_that_says_nothing_of_the_server_is_invalid(
    changes: dict[str, Any], reason: str
) -> None:
    # Even with an objective that is missed: the numbers are void either way.
    found = verdict(measured(**changes), ttft_s={"p90": 0.01})
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
    assert verdict(late, ttft_s={"p90": 1.0}).verdict == "PASS"  # 2 % of 1 s
    assert verdict(late, ttft_s={"p90": 0.5}).verdict == "INVALID"
    config = LoadTestConfig(max_client_lag_s=0.02)
    assert verdict(late, config=config, ttft_s={"p90": 0.5}).verdict == "PASS"


def test_missing_usage_voids_only_what_needs_it() -> None:
    stats = measured(tokens=tokens(0, num_events=10, num_without_usage=5))
    found = verdict(stats, ttft_s={"p90": 1.0})
    assert found.verdict == "PASS"
    assert "no usage" in found.warnings[0]
    assert verdict(stats, tpot_s={"p90": 1.0}).verdict == "INVALID"


def test_text_that_a_gateway_cut_anew_voids_nothing_that_needs_no_tokens() -> None:
    stats = measured(tokens=tokens(num_more_events_than_tokens=5))
    found = verdict(stats, ttft_s={"p90": 1.0}, e2e_s={"p90": 9.0})
    assert found.verdict == "PASS"
    assert "5 answers have more text events than tokens" in found.warnings[0]


@pytest.mark.parametrize(
    "limits",
    [{"tpot_s": {"p90": 1.0}}, {"min_output_throughput_tps": 1}],
    ids=["time per token", "throughput"],
)  # fmt: skip
def test_text_that_a_gateway_cut_anew_voids_what_needs_its_tokens(limits: dict[str, Any]) -> None:
    stats = measured(tokens=tokens(num_more_events_than_tokens=5))
    assert verdict(stats, **limits).verdict == "INVALID"
    # The request fixes the number of tokens, so the usage is right.
    exact = verdict(stats, config=LoadTestConfig(ignore_eos=True), **limits)
    assert exact.verdict == "PASS" and "the count is right" in exact.warnings[0]
    wrong = measured(tokens=tokens(num_more_events_than_tokens=5, num_wrong_length=1))
    assert verdict(wrong, config=LoadTestConfig(ignore_eos=True)).verdict == "INVALID"


def test_too_few_requests_for_the_load_in_flight_do_not_pass() -> None:
    # 100 in flight: blocks of 200, and five of them before their dependence can be seen.
    def judged(num: int, limit: float) -> Judgement:
        values = np.full(num, 0.1)
        stats = replace(measured(num), within={
            "ttft_s.p50": share_of(values <= limit, values, block=200)
        })  # fmt: skip
        objectives = SLO.model_validate({"ttft_s": {"p50": limit}})
        client = client_of(lags(0.0001))
        return judge(CONFIG, objectives, stats, client, open_loop=True)

    few = judged(300, 0.12)
    assert few.verdict == "INCONCLUSIVE"
    assert "needs at least 1000 requests" in few.problems[0]
    assert judged(300, 0.05).verdict == "FAIL"
    assert judged(1000, 0.12).verdict == "PASS"
    assert judged(300, 2.0).verdict == "PASS", "far below its limit"


def test_events_that_the_client_let_run_together_void_a_run() -> None:
    stats = measured(tokens=tokens(4000, num_merged_events=2000))
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


def test_the_worst_verdict_counts_for_all() -> None:
    assert worst([Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE]) == "FAIL"
    assert worst([Verdict.PASS, Verdict.INVALID, Verdict.FAIL]) == "INVALID"
    assert worst([Verdict.PASS, Verdict.INCONCLUSIVE]) == "INCONCLUSIVE"


def with_ttft(values: Any) -> Statistics:
    return replace(measured(), latencies={**measured().latencies, "ttft_s": distribution(values)})


# Of 400 by Wilson: 372 are above 90 %, and 348 below it.
@pytest.mark.parametrize(
    ("kept", "expected", "words"),
    [
        (372, "PASS", ""),
        (371, "INCONCLUSIVE", ""),
        (349, "INCONCLUSIVE", ""),
        (347, "FAIL", "86.8% of the requests keep to it, 95 % interval 83."),
    ],
)
def test_a_limit_between_two_certainties_is_inconclusive(
    kept: int, expected: str, words: str
) -> None:
    values = np.random.default_rng(2).permutation(np.linspace(0.1, 0.5, 400))
    limit = float(np.sort(values)[kept - 1])
    found = verdict(with_ttft(values), values=values, ttft_s={"p90": limit})
    assert found.verdict == expected, found.problems
    if words:
        assert words in found.problems[0]
        assert "; 90 % must" in found.problems[0]


def test_a_limit_of_conversations_counts_conversations() -> None:
    values = np.linspace(0.1, 0.5, 60)
    found = latency_objective("session_s", 90, 0.4, distribution(values), share(54, 60))
    assert "90.0% of the conversations keep to it" in found.reason
    assert found.verdict == "INCONCLUSIVE" and "requests" not in found.reason


def test_a_percentile_far_below_its_limit_passes_though_few_values_cannot_tell() -> None:
    drifting = 0.1 + 0.2 * np.linspace(0, 1, 300)
    stats = with_ttft(drifting)
    assert verdict(stats, values=drifting, ttft_s={"p90": 20.0}).verdict == "PASS"
    found = verdict(stats, values=drifting, ttft_s={"p90": 0.4})
    assert found.verdict == "INCONCLUSIVE"
    [objective] = [one for one in found.objectives if one.name == "ttft_s.p90"]
    assert objective.num_needed is not None and objective.num_needed > 300
    assert f"needs at least {objective.num_needed} requests" in found.problems[0]
    # As many as 300 that do not depend on one another can tell.
    apart = np.random.default_rng(0).permutation(drifting)
    assert verdict(with_ttft(apart), values=apart, ttft_s={"p90": 0.4}).verdict == "PASS"
    assert verdict(with_ttft(apart), values=apart, ttft_s={"p90": 0.2}).verdict == "FAIL"


def test_a_queue_that_grows_does_not_pass() -> None:
    stats = measured(steady_state=steady(2.0, growing=True))
    found = verdict(stats, ttft_s={"p90": 1.0})
    assert found.verdict == "INCONCLUSIVE"
    assert "does not keep up" in found.problems[0]
    assert verdict(stats, open_loop=False, ttft_s={"p90": 1.0}).verdict == "PASS"


def calibration(**changes: Any) -> Calibration:
    well: dict[str, Any] = {
        "num_requests": 100, "num_streams": 8, "rate_rps": None, "ttft_bias_p50_s": 0.0002,
        "ttft_bias_p90_s": 0.0003, "ttft_bias_p99_s": 0.0004, "tpot_bias_p50_s": 0.0,
        "true_ttft_p50_s": 0.1, "cpu_s_per_1000_tokens": 0.02, "busy_share": 0.1, "problems": [],
    }  # fmt: skip
    return Calibration(**{**well, **changes})


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


@pytest.mark.parametrize(
    ("declared", "rate", "expected"),
    [
        (0.5, 0.5, "PASS"),
        (0.5, 0.54, "PASS"),
        (0.5, 0.6, "INVALID"),
        (0.5, None, "INVALID"),
        (None, 0.9, "PASS"),
    ],
)
def test_a_hit_rate_other_than_the_declared_one_voids_the_run(
    declared: float | None, rate: float | None, expected: str
) -> None:
    config = LoadTestConfig(workload=WorkloadConfig(prefix_hit_rate=declared))
    found = verdict(measured(), config=config, evidence={"prefix_hit_rate": rate})
    assert found.verdict == expected


def test_a_machine_that_took_the_cpu_away_voids_the_run() -> None:
    assert verdict(measured(), host={"steal_share": 0.05}).verdict == "PASS"
    assert verdict(measured(), host={"steal_share": 0.2}).verdict == "INVALID"
    assert verdict(measured(), host={"throttled_share": 0.05}).verdict == "INVALID"


def test_requests_that_are_sent_again_warn_and_above_a_share_void_a_run() -> None:
    few = verdict(measured(num_resent=20))
    assert few.verdict == "PASS"
    assert "connection of 20 of 400 requests" in few.warnings[0]
    many = verdict(measured(num_resent=21))
    assert many.verdict == "INVALID"
    assert "at most 5% is allowed" in many.problems[0]
    # A server that closes every connection after its answer does so to one request of each.
    closes = verdict(measured(num_resent=21), evidence={"num_closed_at_once": 1})
    assert closes.verdict == "PASS" and "connection of 21 of 400" in closes.warnings[0]


@pytest.mark.parametrize("open_loop", [True, False])
def test_a_run_without_a_success_fails_whatever_its_objectives(open_loop: bool) -> None:
    none = replace(
        measured(20), num_succeeded=0, num_failed=19, num_unfinished=1, failed=share(20, 20)
    )
    found = verdict(none, open_loop=open_loop, max_error_rate=None)
    assert found.verdict == "FAIL"
    assert "no request succeeded: 19 failed, 1 are unfinished" in found.problems
    empty = replace(
        measured(20), num_offered=0, num_succeeded=0, num_warmup=40, failed=share_of(NO_HITS),
        arrivals_scheduled=Dispersion(num_arrivals=0),
        arrivals_delivered=Dispersion(num_arrivals=0),
    )  # fmt: skip
    found = verdict(empty, open_loop=open_loop)
    assert found.verdict == "FAIL"
    assert "no request was measured: the run ended in its warm-up of 40" in found.problems
    left = replace(measured(20), num_succeeded=0, num_cancelled=20, failed=share_of(NO_HITS))
    assert verdict(left, open_loop=open_loop).verdict == "PASS"


@pytest.mark.parametrize(
    ("endings", "expected", "words"),
    [
        ({"finish_reasons": {"stop": 9, "length": 3}, "named": {"m": {"m-2026": 12}}}, "PASS", ""),
        ({"finish_reasons": {"": 12}, "named": {}}, "PASS", "no answer has a finish reason"),
        (
            {"finish_reasons": {"length": 12}, "named": {}, "num_validated": 0},
            "PASS",
            "no answer was whole, so that its JSON or its calls could be checked",
        ),
        ({"finish_reasons": {"stop": 9, "": 3}, "named": {}}, "INVALID", "3 of 12 answers have no"),
        (
            {"finish_reasons": {"stop": 12}, "named": {"m": {"m": 9, "small": 3}}},
            "INVALID",
            "2 models answered the requests to m: m (9), small (3)",
        ),
    ],
)
def test_answers_of_two_models_or_without_an_end_void_a_run(
    endings: dict[str, Any], expected: str, words: str
) -> None:
    found = verdict(measured(), evidence={"endings": Endings(**{"num_validated": None, **endings})})
    assert found.verdict == expected
    assert words in " ".join([*found.problems, *found.warnings])
    assert not found.is_worth_repeating


def test_a_declared_share_of_repeats_that_cannot_be_measured_voids_a_run() -> None:
    config = LoadTestConfig(workload=WorkloadConfig(min_repeat_ttft_share=0.5))
    found = verdict(measured(), config=config)
    assert found.verdict == "INVALID"
    assert "fewer than 10 prompts were repeated" in found.problems[0]


@pytest.mark.parametrize("name", BOUNDS)
def test_every_bound_of_the_configuration_is_judged(name: str) -> None:
    stats = measured(failed_sessions=share(0, 100))
    slo: dict[str, Any] = {"goodput_e2e_s": 1.0, "max_error_rate": None, name: 0.5}
    found = verdict(stats, **slo)
    assert [objective.name for objective in found.objectives] == [name]
