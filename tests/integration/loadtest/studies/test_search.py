"""Search and sweep, on the known server."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from loadtest.config import SLO
from loadtest.report.formats import report_text
from loadtest.studies import sweep, tries
from loadtest.studies.judgeable_objectives import require_objective
from loadtest.studies.load import Load
from loadtest.studies.measure_load import measure_load, summarize_load
from loadtest.studies.pareto import Contender, sweep_servers
from loadtest.studies.search import replicas, search_concurrency, search_rate
from loadtest.studies.sweep import sweep_loads
from tests.integration.loadtest.small import PROMPTS, config, report_of
from tuneline.core.errors import ConfigError, ServerError

pytestmark = pytest.mark.usefixtures("shared_host")


def test_search_finds_the_rate_that_a_server_of_known_capacity_holds(
    start_known_server: Any, tmp_path: Path
) -> None:
    # It serves one request at a time, 10 ms each: 100 a second and no more.
    options = ("--ttft-s", "0.01", "--itl-s", "0", "--num-tokens", "1", "--one-at-a-time")
    with start_known_server(*options) as server:
        artifact = search_rate(
            config(slo=SLO(e2e_s={"p90": 0.2}), timeout_s=10.0, max_tokens=1),
            server.endpoint,
            tmp_path / "search",
            prompts=PROMPTS,
            start_rps=20.0,
            max_rps=1000.0,
            num_requests=120,
            precision=0.5,
        )
    assert artifact.kind == "load-search"
    report = report_of(artifact)
    assert report["verdict"] == "PASS"
    assert report["confirmed"]
    # An M/D/1 queue of 10 ms holds less than 100/s; a busy machine makes the server slower.
    assert 20 <= report["max_rate_rps"] < 100
    assert report["lowest_failing_rate_rps"] > report["max_rate_rps"]
    assert report["capacity"]["rate_per_replica_rps"] == pytest.approx(0.7 * report["max_rate_rps"])
    rates = [probe["rate_rps"] for probe in report["probes"]]
    assert rates[:2] == [20.0, 40.0]
    assert len(rates) < 15
    assert replicas(100, 20) == 8


def test_search_needs_an_objective_and_says_when_no_rate_holds(known: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs an objective"):
        search_rate(config(), known.endpoint, tmp_path / "a", prompts=PROMPTS)
    with pytest.raises(ConfigError, match="expected 0 < start"):
        search_rate(
            config(slo=SLO(ttft_s={"p90": 1.0})), known.endpoint, tmp_path / "a", prompts=PROMPTS,
            start_rps=9, max_rps=3,
        )  # fmt: skip
    with pytest.raises(ConfigError, match="expected at least 381"):
        search_rate(
            config(slo=SLO(ttft_s={"p90": 1.0}, max_error_rate=0.01)), known.endpoint,
            tmp_path / "a", prompts=PROMPTS, num_requests=300,
        )  # fmt: skip
    artifact = search_rate(
        config(slo=SLO(ttft_s={"p50": 0.001})), known.endpoint, tmp_path / "a", prompts=PROMPTS,
        start_rps=400, num_requests=30,
    )  # fmt: skip
    assert artifact.manifest.metrics["verdict"] == "INCONCLUSIVE"
    assert report_of(artifact)["max_rate_rps"] is None


def test_a_floor_of_throughput_is_searched_upwards(known: Any, tmp_path: Path) -> None:
    floor = SLO(min_request_throughput_rps=120.0, ttft_s={"p90": 1.0})
    artifact = search_rate(
        config(slo=floor), known.endpoint, tmp_path / "a", prompts=PROMPTS,
        start_rps=40.0, max_rps=240.0, num_requests=120,
    )  # fmt: skip
    report = report_of(artifact)
    assert report["verdict"] == "PASS", report["problems"]
    rates = [probe["rate_rps"] for probe in report["probes"]]
    assert rates[:3] == [40.0, 80.0, 160.0]
    assert [probe["is_too_low"] for probe in report["probes"][:2]] == [True, True]
    assert report["max_rate_rps"] == 240.0
    artifact = search_rate(
        config(slo=floor), known.endpoint, tmp_path / "b", prompts=PROMPTS,
        start_rps=40.0, max_rps=80.0, num_requests=60,
    )  # fmt: skip
    report = report_of(artifact)
    assert (report["verdict"], report["max_rate_rps"]) == ("INCONCLUSIVE", None)
    assert "80 requests/s are too few for the throughput objective" in report["problems"][0]


@pytest.mark.parametrize(
    "options",
    [{"peak_rps": -5.0}, {"peak_rps": float("inf")}, {"precision": float("nan")},
     {"max_rps": float("inf")}],
)  # fmt: skip
def test_a_search_for_a_rate_that_makes_no_sense(
    options: dict[str, Any], known: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="expected"):
        search_rate(
            config(slo=SLO(ttft_s={"p90": 1.0})), known.endpoint, tmp_path / "a", prompts=PROMPTS,
            **options,
        )  # fmt: skip
    assert not (tmp_path / "a").exists()


ONE_AT_A_TIME = ("--ttft-s", "0.02", "--itl-s", "0", "--num-tokens", "1", "--one-at-a-time")


def test_the_most_streams_of_a_server_of_known_capacity(
    start_known_server: Any, tmp_path: Path
) -> None:
    # It serves one request at a time, 20 ms each: n streams wait 20 n ms. Six are too many.
    with start_known_server(*ONE_AT_A_TIME) as server:
        artifact = search_concurrency(
            config(slo=SLO(e2e_s={"p90": 0.115}), timeout_s=10.0, max_tokens=1),
            server.endpoint, tmp_path / "search", prompts=PROMPTS, most=64, num_requests=60,
        )  # fmt: skip
    report = report_of(artifact)
    assert report["verdict"] == "PASS", report["problems"]
    # A busy machine makes the server slower, and never faster.
    assert 3 <= report["max_concurrency"] <= 5
    assert report["lowest_failing_concurrency"] == report["max_concurrency"] + 1
    # A probe of a busy machine may need more requests than it has to miss the objective for sure.
    failing = [
        probe["verdict"]
        for probe in report["probes"]
        if probe["concurrency"] == report["lowest_failing_concurrency"]
    ]
    assert failing
    limited_by = "objectives" if "FAIL" in failing else "num_requests"
    assert (report["axis"], report["limited_by"]) == ("concurrency", limited_by)
    assert report["max_rate_rps"] is None and report["capacity"] is None
    streams = [probe["concurrency"] for probe in report["probes"]]
    assert streams[:3] == [1, 2, 4]
    # One at a time: a second stream buys no throughput. A pause of a busy machine may fall into
    # the probe of a single stream.
    assert report["knee"]["concurrency"] <= 2
    assert 0.018 < report["probes"][0]["mean_e2e_s"] < 0.1
    assert (artifact.path / "concurrency.png").stat().st_size > 1000
    metrics = artifact.manifest.metrics
    assert metrics["max_concurrency"] == report["max_concurrency"]
    assert "knee" in report_text(artifact, "html")


def test_a_search_by_streams_is_honest(known: Any, tmp_path: Path) -> None:
    slow = config(slo={"ttft_s": {"p50": 0.001}})
    none = report_of(
        search_concurrency(slow, known.endpoint, tmp_path / "a", prompts=PROMPTS, num_requests=20)
    )
    assert (none["verdict"], none["max_concurrency"]) == ("INCONCLUSIVE", None)
    assert "no number of streams down to 1 stream holds" in none["problems"][0]
    late = config(slo={"ttft_s": {"p50": 0.5}}, max_client_lag_s=1e-7)
    spoilt = report_of(
        search_concurrency(late, known.endpoint, tmp_path / "b", prompts=PROMPTS, num_requests=20)
    )
    assert (spoilt["verdict"], spoilt["max_concurrency"]) == ("INVALID", None)
    few = config(slo={"ttft_s": {"p50": 0.5}})
    most = report_of(
        search_concurrency(
            few, known.endpoint, tmp_path / "c", prompts=PROMPTS, num_requests=20, most=2
        )
    )
    assert (most["max_concurrency"], most["limited_by"]) == (2, "max_concurrency")
    with pytest.raises(ConfigError, match="start 9, max 3 streams"):
        search_concurrency(
            few, known.endpoint, tmp_path / "d", prompts=PROMPTS, num_requests=20, start=9, most=3
        )


def test_a_search_that_was_killed_goes_on(known: Any, tmp_path: Path) -> None:
    settings = config(slo={"ttft_s": {"p50": 5.0}})
    options: dict[str, Any] = {"prompts": PROMPTS, "num_requests": 40, "start_rps": 40.0,
                               "max_rps": 160.0, "resume_key": "known"}  # fmt: skip

    def search() -> dict[str, Any]:
        return report_of(search_rate(settings, known.endpoint, tmp_path / "s", **options))

    def search_killed_after(count: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tries, "measure_load", _killed_after(count))
            with pytest.raises(KeyboardInterrupt):
                search()

    search_killed_after(2)
    journal = tmp_path / ".s.partial" / ".journal.jsonl"
    assert len(journal.read_text().splitlines()) == 3
    num_before = len(known.truths())
    with journal.open("a") as file:
        file.write('{"note": {"axis": "ra')  # a kill cut the line off
    search_killed_after(1)
    assert len([json.loads(line) for line in journal.read_text().splitlines()]) == 4
    report = search()
    assert not list((tmp_path / "s").glob(".*"))
    assert [probe["rate_rps"] for probe in report["probes"]] == [40.0, 80.0, 160.0, 160.0]
    # Only the third rate and its confirmation were sent: 40 and 80 requests, each with warm-up.
    assert len(known.truths()) - num_before == 40 + 80 + 2 * 5
    assert (report["verdict"], report["max_rate_rps"]) == ("PASS", 160.0)


def test_a_search_goes_on_with_the_same_prompts_only(known: Any, tmp_path: Path) -> None:
    settings = config(slo={"ttft_s": {"p50": 0.5}})

    def search(prompts: list[Any]) -> dict[str, Any]:
        return report_of(
            search_rate(
                settings,
                known.endpoint,
                tmp_path / "s",
                prompts=prompts,
                num_requests=20,
                start_rps=80.0,
                max_rps=80.0,
                resume_key="known",
            )
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tries, "measure_load", _killed_after(1))
        with pytest.raises(KeyboardInterrupt):
            search(PROMPTS)
    num_before = len(known.truths())
    search(PROMPTS[:1])
    assert len(known.truths()) - num_before == 20 + 40 + 2 * 5


def _killed_after(count: int) -> Any:
    num_calls = 0

    def measure(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls > count:
            raise KeyboardInterrupt
        return measure_load(*args, **kwargs)

    return measure


def test_no_probe_starts_after_the_time_limit(known: Any, tmp_path: Path) -> None:
    settings = config(slo={"ttft_s": {"p50": 5.0}})
    report = report_of(
        search_rate(settings, known.endpoint, tmp_path / "s", prompts=PROMPTS, num_requests=40,
                    start_rps=40.0, max_rps=160.0, time_limit_s=0.5)
    )  # fmt: skip
    assert (report["verdict"], report["limited_by"]) == ("INCONCLUSIVE", "time_limit")
    assert report["problems"] == ["no load was confirmed within 0.5 s"]
    assert len(report["probes"]) == 1 and report["highest_passed_rps"] == 40.0
    with pytest.raises(ConfigError, match="time limit 0 s"):
        search_rate(settings, known.endpoint, tmp_path / "t", prompts=PROMPTS, time_limit_s=0.0)


def test_servers_are_swept_in_turn(start_known_server: Any, tmp_path: Path) -> None:
    def server(ttft_s: str, itl_s: str) -> Contender:
        options = ("--ttft-s", ttft_s, "--itl-s", itl_s, "--num-tokens", "8")

        @contextlib.contextmanager
        def start() -> Any:
            with start_known_server(*options) as known:
                yield known.endpoint

        return Contender({"itl_s": itl_s}, start)

    @contextlib.contextmanager
    def dead() -> Any:
        raise ServerError("vLLM died while loading\n  | its log")
        yield

    artifact = sweep_servers(
        config(slo={"ttft_s": {"p50": 1.0}}, num_warmup_requests=2),
        {
            "fast": server("0.02", "0.01"), "slow": server("0.02", "0.04"),
            "dead": Contender({}, dead),
        },
        tmp_path / "s", prompts=PROMPTS, concurrencies=[4, 1], num_requests=12,
    )  # fmt: skip
    report = report_of(artifact)
    assert artifact.kind == "load-pareto"
    assert [(one["server"], one["concurrency"]) for one in report["points"]] == [
        ("fast", 1), ("fast", 4), ("slow", 1), ("slow", 4),
    ]  # fmt: skip
    for one in report["points"]:
        # 1 / itl by construction; a busy machine is slower.
        itl_s = 0.01 if one["server"] == "fast" else 0.04
        assert one["tokens_per_s_per_user"] == pytest.approx(1 / itl_s, rel=0.25)
        # Eight tokens take the TTFT and seven gaps.
        tokens_per_s = one["concurrency"] * 8 / (0.02 + 7 * itl_s)
        assert one["tokens_per_s"] == pytest.approx(tokens_per_s, rel=0.35)
    front = [(one["server"], one["concurrency"]) for one in report["points"] if one["is_on_front"]]
    assert ("fast", 4) in front
    assert not any(server == "slow" for server, _ in front)
    assert report["servers"][2]["problem"] == "vLLM died while loading"
    assert report["verdict"] == "FAIL"
    assert "dead: vLLM died while loading" in report["problems"]
    assert (artifact.path / "pareto.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match="expected at least one server"):
        sweep_servers(config(), {}, tmp_path / "t", prompts=PROMPTS, concurrencies=[1])


def test_a_sweep_measures_every_rate(known: Any, tmp_path: Path) -> None:
    artifact = sweep_loads(
        config(slo={"ttft_s": {"p50": 0.001}}), known.endpoint, tmp_path / "s", prompts=PROMPTS,
        axis="rate", values=[100, 50], num_requests=60,
    )  # fmt: skip
    report = report_of(artifact)
    assert [probe["rate_rps"] for probe in report["probes"]] == [50, 100]
    assert artifact.manifest.metrics["verdict"] == report["verdict"] == "FAIL"
    assert artifact.manifest.metrics["problems"] == report["problems"] != []
    assert all(scenario["requests"]["offered"] == 60 for scenario in report["scenarios"])
    assert (artifact.path / "rates.png").stat().st_size > 1000
    page = report_text(artifact, "markdown")
    assert "| 50.0 | FAIL | 60 |" in page and "| 100 | FAIL | 60 |" in page
    with pytest.raises(ConfigError, match="at least one rate"):
        sweep_loads(
            config(), known.endpoint, tmp_path / "t", prompts=PROMPTS, axis="rate", values=[]
        )


def test_a_sweep_that_was_killed_goes_on(known: Any, tmp_path: Path) -> None:
    settings = config(slo={"ttft_s": {"p50": 0.5}})

    def measure() -> dict[str, Any]:
        return report_of(
            sweep_loads(settings, known.endpoint, tmp_path / "s", prompts=PROMPTS, axis="rate",
                        values=[50, 80, 100], num_requests=40, resume_key="known")
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "measure_load", _killed_after(2))
        with pytest.raises(KeyboardInterrupt):
            measure()
    draft = tmp_path / ".s.partial"
    journal = draft / ".journal.jsonl"
    first, fifty, eighty = journal.read_text().splitlines()
    num_before = len(known.truths())
    # Of the second load, the records are damaged.
    with (draft / "records-rate-80.npz").open("ab") as file:
        file.write(b"x")
    report = measure()
    # The last two were sent, each with its warm-up.
    assert len(known.truths()) - num_before == 2 * (40 + 5)
    assert [probe["rate_rps"] for probe in report["probes"]] == [50, 80, 100]
    assert report["probes"][0] == json.loads(fifty)["probe"]
    assert report["scenarios"][0] == json.loads(fifty)["scenario"]
    assert report["scenarios"][1] != json.loads(eighty)["scenario"]
    assert not list((tmp_path / "s").glob(".*"))
    assert {path.name for path in (tmp_path / "s").glob("records-*")} == {
        "records-rate-50.npz", "records-rate-80.npz", "records-rate-100.npz"
    }  # fmt: skip
    assert json.loads(first).keys() == {"key"}


def test_a_rate_with_many_streams_is_judged_by_as_many_requests_as_that_takes(
    start_known_server: Any, tmp_path: Path
) -> None:
    settings = config(slo={"ttft_s": {"p50": 0.3}}, max_tokens=2)
    with start_known_server("--ttft-s", "0.2", "--itl-s", "0") as server:
        # 0.2 s at 400 requests/s are 80 streams: blocks of 160, and 800 requests for five.
        enough, few = (
            report_of(
                search_rate(settings, server.endpoint, tmp_path / str(num), prompts=PROMPTS,
                       num_requests=num, start_rps=400.0, max_rps=400.0, precision=1.0)
            )
            for num in (300, 40)
        )  # fmt: skip
    assert enough["verdict"] == "PASS", enough["problems"]
    assert (enough["max_rate_rps"], enough["limited_by"]) == (400.0, "max_rate")
    # A busy machine holds its answers for longer, so more of them are open.
    assert 700 <= enough["probes"][1]["num_requests"] <= 3000
    # Ten times 40 are too few for that rate, and not for a quarter of it.
    assert few["limited_by"] == "num_requests"
    assert few["highest_passed_rps"] <= 200
    assert few["probes"][1]["num_needed"] > 400


@pytest.mark.parametrize(("lag_s", "verdict"), [(1.0, "FAIL"), (1e-7, "INVALID")])
def test_a_probe_that_its_own_client_spoiled_has_not_failed(
    known: Any, lag_s: float, verdict: str
) -> None:
    # 60 streams of two seconds and more: stopped early, and by a client that was late.
    settings = config(slo={"ttft_s": {"p50": 0.001}, "max_error_rate": None})
    late = settings.model_copy(update={"max_client_lag_s": lag_s})
    load = Load("rate", 60.0)
    result, _ = measure_load(late, known.endpoint, PROMPTS, load, 60, 0, early=False)
    assert summarize_load(load, result, stopped=True).verdict == verdict


def test_a_probe_that_is_stopped_early_has_failed(start_known_server: Any) -> None:
    settings = config(slo={"e2e_s": {"p50": 0.1}}, max_client_lag_s=0.2)
    with start_known_server("--ttft-s", "0.1", "--itl-s", "0", "--one-at-a-time") as server:
        load = Load("rate", 60.0)
        result, stopped = measure_load(settings, server.endpoint, PROMPTS, load, 300, 0)
    assert stopped
    assert result.stats.num_unfinished > 100
    assert summarize_load(load, result, stopped).verdict == "FAIL", result.judgement.problems


def test_a_search_over_conversations_counts_conversations(known: Any, tmp_path: Path) -> None:
    talk = [
        {"role": role, "content": f"{role} {number}"}
        for number in range(4)
        for role in ("user", "assistant")
    ][:-1]
    settings = config(
        slo=SLO(ttft_s={"p90": 2.0}), workload={"sessions": {"think_s": {"mean": 0.0}}}
    )
    artifact = search_rate(
        settings, known.endpoint, tmp_path / "a", prompts=[talk], start_rps=20.0, max_rps=20.0,
        num_requests=5,
    )  # fmt: skip
    report = report_of(artifact)
    assert report["arrivals"] == "conversations"
    # 29 requests judge a p90: 8 conversations of four turns, and twice as many are sent.
    counts = [probe["num_requests"] for probe in report["probes"]]
    assert counts[:2] == [4 * 5, 4 * 16]
    assert report["probes"][1]["verdict"] == "PASS", report["probes"][1]["problems"]
    page = report_text(artifact, "html")
    assert "conversations/s" in page
    assert "requests/s" not in page


def test_limits_of_good_requests_are_not_an_objective() -> None:
    with pytest.raises(ConfigError, match="not how many must be") as caught:
        require_objective(config(slo={"goodput_ttft_s": 0.5}), 300)
    assert caught.value.hint == "Try: --set loadtest.slo.min_goodput_share=0.9"
    require_objective(config(slo={"goodput_ttft_s": 0.5, "min_goodput_share": 0.9}), 300)


@pytest.mark.parametrize(
    ("slo", "needed"),
    [
        ({"session_s": {"p90": 5.0}}, 29),
        ({"ttft_s": {"p50": 0.5}, "max_session_error_rate": 0.1}, 35),
        ({"ttft_s": {"p99": 0.5}, "max_error_rate": 0.01}, 1),
    ],
)
def test_too_few_conversations_are_refused_for_objectives_on_them(
    slo: dict[str, Any], needed: int
) -> None:
    talks = config(slo=slo, workload={"sessions": {}})
    require_objective(talks, needed)
    if needed > 1:
        with pytest.raises(ConfigError, match=f"{needed - 1} conversations a probe cannot judge"):
            require_objective(talks, needed - 1)


def test_a_search_that_its_own_client_limits_says_so(known: Any, tmp_path: Path) -> None:
    settings = config(slo={"ttft_s": {"p50": 0.5}}, max_client_lag_s=1e-7)
    report = report_of(
        search_rate(settings, known.endpoint, tmp_path / "s", prompts=PROMPTS, num_requests=30,
               start_rps=20.0, max_rps=80.0)
    )  # fmt: skip
    assert report["verdict"] == "INVALID"
    assert report["max_rate_rps"] is None
    assert report["capacity"]["rate_per_replica_rps"] is None
    assert "the measurement is invalid" in report["problems"][0]
    assert len(report["probes"]) == 2, "one rate, tried twice, is enough"


def test_a_search_of_a_server_that_only_fails_ends_at_once(known: Any, tmp_path: Path) -> None:
    settings = config(slo={"ttft_s": {"p50": 0.5}})
    failing = [[{"role": "user", "content": "fault:500"}]]
    began_s = time.monotonic()
    report = report_of(
        search_rate(settings, known.endpoint, tmp_path / "s", prompts=failing, num_requests=1200,
               start_rps=20.0)
    )  # fmt: skip
    assert report["verdict"] == "INVALID"
    assert "no request succeeded at 20 requests/s: http_500" in report["problems"][0]
    assert time.monotonic() - began_s < 45, "1200 requests at this rate take a minute"
