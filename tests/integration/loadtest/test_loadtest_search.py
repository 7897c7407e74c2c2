"""Calibration, search, sweep, comparison, shards and the other clients, on the known server."""

import contextlib
import csv
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import workers
from loadtest.calibrate import calibrate, compare_with_truth
from loadtest.compare import compare, compare_reports
from loadtest.config import SLO, LoadTestConfig, Scenario
from loadtest.formats import csv_text, prometheus_text, vllm_documents
from loadtest.openai_check import openai_check
from loadtest.plan import Records
from loadtest.planning import make_plan
from loadtest.probe import Served
from loadtest.run import judged, run_loadtest
from loadtest.search import (
    _limited_by,
    _probe,
    _summary,
    replicas,
    require_objective,
    search,
    sweep,
)
from loadtest.shards import merge_shards, run_shard, write_shard
from loadtest.workers import Measured, run_workers
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError, ConfigError

PROMPTS = [[{"role": "user", "content": f"question {number}"}] for number in range(10)]


def config(**options: Any) -> LoadTestConfig:
    values = {
        "scenarios": [{"name": "open", "rate_rps": 60.0, "num_requests": 60}],
        "num_warmup_requests": 5,
        "max_tokens": 8,
        "max_client_lag_s": 1.0,
        "calibrate": False,
        **options,
    }
    return LoadTestConfig.model_validate(values)


def report_of(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.path / "report.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(name="x", concurrency=32, num_requests=9),
        Scenario(name="x", rate_rps=50.0, num_requests=9),
        Scenario(name="x", arrival="burst", num_requests=30),
    ],
)
def test_calibration_measures_its_own_bias_at_the_planned_load(scenario: Scenario) -> None:
    found = calibrate(config(), scenario)
    assert found.problems in ([], [p for p in found.problems if "headroom" in p])
    assert found.num_requests >= 30
    assert found.true_ttft_p50_s is not None and found.ttft_bias_p50_s is not None
    assert found.true_ttft_p50_s >= 0.1
    print(f"TTFT bias p50 {found.ttft_bias_p50_s * 1e3:.3f} ms at {scenario.loop} loop")
    assert abs(found.ttft_bias_p50_s) < 0.01
    assert found.cpu_s_per_1000_tokens > 0


def test_a_client_that_is_late_or_loses_requests_does_not_pass_calibration(known: Any) -> None:
    before = len(known.truths())
    settings = config(scenarios=[{"name": "x", "concurrency": 4, "num_requests": 20}])
    plan, _ = make_plan(settings, settings.scenarios[0], known.endpoint, PROMPTS, seed=0)
    records = run_workers(plan, None).records
    truths = known.truths()[before:]
    scenario = settings.scenarios[0]

    def problems(records: Records, truths: list[dict[str, Any]], busy: float = 0.1) -> list[str]:
        return compare_with_truth(
            records, truths, scenario=scenario, cpu_s=1.0, busy_share=busy
        ).problems

    assert problems(records, truths) == []
    assert "the server saw 24" in problems(records, truths[:-1])[0]
    miscounted = [{**truths[0], "num_tokens": 7}, *truths[1:]]
    assert "the server sent 199 tokens" in problems(records, miscounted)[0]
    assert "headroom" in problems(records, truths, busy=0.8)[0]
    late = [{**t, "token_write_ns": [w - 20_000_000 for w in t["token_write_ns"]]} for t in truths]
    found = compare_with_truth(records, late, scenario=scenario, cpu_s=1.0, busy_share=0.1)
    honest = compare_with_truth(records, truths, scenario=scenario, cpu_s=1.0, busy_share=0.1)
    assert found.ttft_bias_p50_s is not None and honest.ttft_bias_p50_s is not None
    assert found.ttft_bias_p50_s - honest.ttft_bias_p50_s == pytest.approx(0.02, abs=1e-6)


def test_the_server_s_own_figures_are_reconciled(known: Any, tmp_path: Path) -> None:
    artifact = run_loadtest(config(), known.endpoint, tmp_path / "a", prompts=PROMPTS)
    (scenario,) = report_of(artifact)["scenarios"]
    rows = {row["name"]: row for row in scenario["server"]["reconciliation"]}
    assert rows["generation_tokens"]["client"] == rows["generation_tokens"]["server"] == 65 * 8
    assert rows["mean_ttft_s"]["client"] == pytest.approx(rows["mean_ttft_s"]["server"], abs=0.02)
    assert scenario["server"]["figures"]["prefix_hit_rate"] == 0.0


def test_a_declared_hit_rate_that_is_not_met_voids_the_run(known: Any, tmp_path: Path) -> None:
    before = len(known.truths())
    artifact = run_loadtest(
        config(workload={"prefix_hit_rate": 0.9}), known.endpoint, tmp_path / "a", prompts=PROMPTS
    )
    assert artifact.manifest.metrics["verdict"] == "INVALID"
    assert len(known.truths()) - before == 65, "another try would find the same"
    assert "0% of the prompt tokens, 90% was declared" in artifact.manifest.metrics["problems"][0]


def test_a_measurement_that_the_host_disturbed_is_made_once_more(
    known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[subprocess.Popen[str]] = []
    start = workers._start

    def start_and_tell(counters: int) -> subprocess.Popen[str]:
        clients.append(start(counters))
        return clients[-1]

    monkeypatch.setattr(workers, "_start", start_and_tell)
    settings = config(
        scenarios=[{"name": "open", "rate_rps": 30.0, "num_requests": 60}], max_client_lag_s=0.3
    )

    def disturb() -> None:
        """Stop the first client for a second, in the middle of its run."""
        before = len(known.truths())
        while len(known.truths()) < before + 10:
            time.sleep(0.05)
        clients[0].send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        clients[0].send_signal(signal.SIGCONT)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    artifact = run_loadtest(settings, known.endpoint, tmp_path / "a", prompts=PROMPTS)
    disturber.join()
    (scenario,) = report_of(artifact)["scenarios"]
    assert scenario["verdict"] == "PASS", scenario["problems"]
    assert any("measured twice: the first time" in warning for warning in scenario["warnings"])


def test_a_client_that_is_always_late_is_measured_twice_and_no_more(
    known: Any, tmp_path: Path
) -> None:
    before = len(known.truths())
    artifact = run_loadtest(
        config(max_client_lag_s=1e-7), known.endpoint, tmp_path / "a", prompts=PROMPTS
    )
    assert artifact.manifest.metrics["verdict"] == "INVALID"
    assert len(known.truths()) - before == 2 * 65


def test_token_ids_go_to_completions_with_exact_lengths(known: Any, tmp_path: Path) -> None:
    settings = config(
        workload={
            "source": "synthetic",
            "input_tokens": {"mean": 30},
            "output_tokens": {"distribution": "normal", "mean": 8, "stddev": 2, "min": 3},
        },
        ignore_eos=True,
    )
    artifact = run_loadtest(settings, known.endpoint, tmp_path / "a", prompts=[])
    (scenario,) = report_of(artifact)["scenarios"]
    assert scenario["requests"]["succeeded"] == 60
    assert scenario["tokens"]["num_wrong_length"] == 0
    assert scenario["tokens"]["num_output_tokens"] == scenario["tokens"]["num_events"]


def test_a_mix_of_adapters_has_figures_for_each(known: Any, tmp_path: Path) -> None:
    settings = config(workload={"models": {"known": 1, "known@0123456789ab": 1}})
    artifact = run_loadtest(settings, known.endpoint, tmp_path / "a", prompts=PROMPTS)
    models = report_of(artifact)["scenarios"][0]["models"]
    assert sum(model["offered"] for model in models.values()) == 60
    assert all(model["succeeded"] == model["ttft_s"]["n"] > 10 for model in models.values())


def test_search_finds_the_rate_that_a_server_of_known_capacity_holds(
    start_known_server: Any, tmp_path: Path
) -> None:
    # It serves one request at a time, 20 ms each: 50 a second and no more.
    options = ("--ttft-s", "0.02", "--itl-s", "0", "--num-tokens", "1", "--one-at-a-time")
    with start_known_server(*options) as server:
        artifact = search(
            config(slo=SLO(e2e_p90_s=0.4), timeout_s=10.0, max_tokens=1),
            server.endpoint,
            tmp_path / "search",
            prompts=PROMPTS,
            start_rps=10.0,
            max_rps=500.0,
            num_requests=120,
            precision=0.3,
        )
    assert artifact.kind == "load-search"
    report = report_of(artifact)
    assert report["verdict"] == "PASS"
    assert report["confirmed"]
    # An M/D/1 queue of 20 ms holds less than 50/s; a busy machine makes the server slower.
    assert 10 <= report["max_rate_rps"] < 50
    assert report["lowest_failing_rate_rps"] > report["max_rate_rps"]
    assert report["capacity"]["rate_per_replica_rps"] == pytest.approx(0.7 * report["max_rate_rps"])
    rates = [probe["rate_rps"] for probe in report["probes"]]
    assert rates[:2] == [10.0, 20.0]
    assert len(rates) < 15
    assert replicas(100, 20) == 8


def test_search_needs_an_objective_and_says_when_no_rate_holds(known: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs an objective"):
        search(config(), known.endpoint, tmp_path / "a", prompts=PROMPTS)
    with pytest.raises(ConfigError, match="expected 0 < start"):
        search(
            config(slo=SLO(ttft_p90_s=1.0)), known.endpoint, tmp_path / "a", prompts=PROMPTS,
            start_rps=9, max_rps=3,
        )  # fmt: skip
    artifact = search(
        config(slo=SLO(ttft_p50_s=0.001)), known.endpoint, tmp_path / "a", prompts=PROMPTS,
        start_rps=100, num_requests=30,
    )  # fmt: skip
    assert artifact.manifest.metrics["verdict"] == "INCONCLUSIVE"
    assert report_of(artifact)["max_rate_rps"] is None


def test_a_sweep_measures_every_rate(known: Any, tmp_path: Path) -> None:
    artifact = sweep(
        config(slo={"ttft_p50_s": 0.001}), known.endpoint, tmp_path / "s", prompts=PROMPTS,
        rates_rps=[100, 50], num_requests=60,
    )  # fmt: skip
    report = report_of(artifact)
    assert [probe["rate_rps"] for probe in report["probes"]] == [50, 100]
    assert artifact.manifest.metrics["verdict"] == report["verdict"] == "FAIL"
    assert artifact.manifest.metrics["problems"] == report["problems"] != []
    assert all(scenario["requests"]["offered"] == 60 for scenario in report["scenarios"])
    assert (artifact.path / "rates.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match="at least one rate"):
        sweep(config(), known.endpoint, tmp_path / "t", prompts=PROMPTS, rates_rps=[])


def test_a_comparison_finds_the_slower_server_and_only_that(
    known: Any, start_known_server: Any, tmp_path: Path
) -> None:
    settings = config(scenarios=[{"name": "open", "rate_rps": 60.0, "num_requests": 80}])
    with start_known_server("--ttft-s", "0.06", "--itl-s", "0.004") as slower:
        artifact = compare(
            settings, known.endpoint, slower.endpoint, tmp_path / "c", prompts=PROMPTS,
            num_rounds=2,
        )  # fmt: skip
    report = report_of(artifact)
    assert report["verdict"] == "FAIL", report["problems"]
    found = {one["metric"]: one for one in report["scenarios"][0]["differences"]}
    assert found["ttft_s"]["num_pairs"] == 160
    assert found["ttft_s"]["verdict"] == "slower"
    assert found["ttft_s"]["ci95_low"] <= 0.03 + 0.02
    assert found["ttft_s"]["difference"] == pytest.approx(0.03, abs=0.02)
    digests = [
        run["plan_digest"] for runs in report["scenarios"][0]["runs"].values() for run in runs
    ]
    assert len(digests) == 4
    assert digests[:2] == digests[2:]
    same = compare(
        settings, known.endpoint, known.endpoint, tmp_path / "d", prompts=PROMPTS, num_rounds=2,
        margin=0.5,
    )  # fmt: skip
    assert report_of(same)["verdict"] in ("PASS", "INCONCLUSIVE")


@contextlib.contextmanager
def recording() -> Iterator[tuple[Endpoint, list[list[int]]]]:
    """A server that answers each completion with one token and keeps the prompt."""
    prompts: list[list[int]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/v1/models"
            self.answer(200 if found else 404, b'{"data": [{"id": "known"}]}')

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            prompts.append(json.loads(body)["prompt"])
            usage = b'"usage": {"prompt_tokens": 9, "completion_tokens": 1}'
            event = b'data: {"choices": [{"text": "a", "finish_reason": "stop"}], ' + usage
            self.answer(200, event + b"}\n\ndata: [DONE]\n\n")

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    Handler.protocol_version = "HTTP/1.1"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "known"), prompts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_both_sides_of_a_comparison_are_sent_the_same_token_ids(tmp_path: Path) -> None:
    settings = config(
        scenarios=[{"name": "open", "rate_rps": 50.0, "num_requests": 12}],
        workload={"source": "synthetic", "input_tokens": {"mean": 30}},
        num_warmup_requests=0,
    )
    with recording() as (a, prompts_a), recording() as (b, prompts_b):
        compare(settings, a, b, tmp_path / "c", prompts=[], num_rounds=2)
    assert len(prompts_a) == len(prompts_b) == 24
    for first in (0, 12):
        round_a, round_b = prompts_a[first : first + 12], prompts_b[first : first + 12]
        assert sorted(round_a) == sorted(round_b)
    assert not {tuple(one) for one in prompts_a[:12]} & {tuple(one) for one in prompts_a[12:]}


def test_reports_of_other_requests_are_not_compared(known: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_loadtest(config(seed=seed), known.endpoint, tmp_path / name, prompts=PROMPTS)
    artifact = compare_reports(tmp_path / "a", tmp_path / "b", tmp_path / "ab", margin=1.0)
    report = report_of(artifact)
    assert report["interleaved"] is False
    assert {one["num_pairs"] for one in report["scenarios"][0]["differences"]} == {60}
    with pytest.raises(ArtifactError, match="other requests or other times") as error:
        compare_reports(tmp_path / "a", tmp_path / "c", tmp_path / "ac")
    assert "seed differs" in str(error.value)
    assert not (tmp_path / "ac").exists()


def test_a_comparison_without_an_answer_is_invalid(known: Any, tmp_path: Path) -> None:
    failing = [[{"role": "user", "content": "fault:500"}]]
    artifact = compare(
        config(), known.endpoint, known.endpoint, tmp_path / "c", prompts=failing, num_rounds=1
    )
    report = report_of(artifact)
    assert report["verdict"] == "INVALID"
    assert "no request succeeded on both sides" in report["problems"][0]


def test_a_rate_with_many_streams_is_judged_by_as_many_requests_as_that_takes(
    start_known_server: Any, tmp_path: Path
) -> None:
    settings = config(slo={"ttft_p50_s": 0.5}, max_tokens=2)
    with start_known_server("--ttft-s", "0.4", "--itl-s", "0") as server:
        # 0.4 s at 200 requests/s are 80 streams: blocks of 160, and 800 requests for five.
        enough, few = (
            report_of(
                search(settings, server.endpoint, tmp_path / str(num), prompts=PROMPTS,
                       num_requests=num, start_rps=200.0, max_rps=200.0, precision=1.0)
            )
            for num in (150, 40)
        )  # fmt: skip
    assert enough["verdict"] == "PASS", enough["problems"]
    assert (enough["max_rate_rps"], enough["limited_by"]) == (200.0, "max_rate")
    assert 700 <= enough["probes"][1]["num_requests"] <= 1500
    # Ten times 40 are too few for that rate, and not for a quarter of it.
    assert few["limited_by"] == "num_requests"
    assert few["highest_passed_rps"] <= 100
    assert few["probes"][1]["num_needed"] > 400


def test_a_probe_that_its_own_client_spoiled_has_not_failed(known: Any, tmp_path: Path) -> None:
    # 60 streams of two seconds and more: stopped early, and by a client that was late.
    settings = config(slo={"ttft_p50_s": 0.001, "max_error_rate": None})
    for lag_s, expected in ((1.0, "FAIL"), (1e-7, "INVALID")):
        late = settings.model_copy(update={"max_client_lag_s": lag_s})
        result, _ = _probe(late, known.endpoint, PROMPTS, 60.0, 60, 0, early=False)
        assert _summary(60.0, result, stopped=True).verdict == expected


def test_a_probe_that_is_stopped_early_has_failed(start_known_server: Any) -> None:
    settings = config(slo={"e2e_p50_s": 0.1}, max_client_lag_s=0.2)
    with start_known_server("--ttft-s", "0.1", "--itl-s", "0", "--one-at-a-time") as server:
        result, stopped = _probe(settings, server.endpoint, PROMPTS, 60.0, 300, 0)
    assert stopped
    assert result.stats.num_unfinished > 100
    assert _summary(60.0, result, stopped).verdict == "FAIL", result.judgement.problems


def test_what_limits_a_search() -> None:
    assert _limited_by(True, 3.0, False) == "objectives"
    assert _limited_by(True, None, False) == "max_rate"
    assert _limited_by(True, 3.0, True) == _limited_by(False, 3.0, True) == "num_requests"
    assert _limited_by(False, 3.0, False) is None


def test_limits_of_good_requests_are_no_objective_of_their_own() -> None:
    with pytest.raises(ConfigError, match="not how many must be") as caught:
        require_objective(config(slo={"goodput_ttft_s": 0.5}), 300)
    assert caught.value.hint == "Try: --set loadtest.slo.min_goodput_share=0.9"
    require_objective(config(slo={"goodput_ttft_s": 0.5, "min_goodput_share": 0.9}), 300)


def test_a_search_that_its_own_client_limits_says_so(known: Any, tmp_path: Path) -> None:
    settings = config(slo={"ttft_p50_s": 0.5}, max_client_lag_s=1e-7)
    report = report_of(
        search(settings, known.endpoint, tmp_path / "s", prompts=PROMPTS, num_requests=30,
               start_rps=20.0, max_rps=80.0)
    )  # fmt: skip
    assert report["verdict"] == "INVALID"
    assert report["max_rate_rps"] is None
    assert report["capacity"]["rate_per_replica_rps"] is None
    assert "the measurement is invalid" in report["problems"][0]
    assert len(report["probes"]) == 2, "one rate, tried twice, is enough"


def test_a_search_of_a_server_that_only_fails_ends_at_once(known: Any, tmp_path: Path) -> None:
    settings = config(slo={"ttft_p50_s": 0.5})
    failing = [[{"role": "user", "content": "fault:500"}]]
    began_s = time.monotonic()
    report = report_of(
        search(settings, known.endpoint, tmp_path / "s", prompts=failing, num_requests=300,
               start_rps=20.0)
    )  # fmt: skip
    assert report["verdict"] == "INVALID"
    assert "no request succeeded at 20 requests/s: http_500" in report["problems"][0]
    assert time.monotonic() - began_s < 12, "300 requests at this rate take 15 s"


def test_shards_of_different_runs_are_not_joined(known: Any, tmp_path: Path) -> None:
    def shard(name: str, number: int, *, start_s: float, port: int) -> Path:
        settings = config()
        plan, workload = make_plan(
            settings, settings.scenarios[0], known.endpoint, PROMPTS, seed=settings.seed
        )
        measured = run_workers(plan, None)
        rows = measured.records.index % 2 == number
        endpoint = replace(known.endpoint, url=f"http://127.0.0.1:{port}/v1")
        part = Measured(measured.records.select(rows), measured.workers, start_s)
        resolved = settings.model_dump(mode="json")
        with new_artifact(tmp_path / name, "load-shard", config=resolved) as draft:
            served = Served(["known"], None, None, None)
            write_shard(draft.dir, plan, workload, endpoint, served, part, number, 2)
        return tmp_path / name

    first = shard("a", 0, start_s=1000.0, port=1)
    other = shard("b", 1, start_s=1007.0, port=2)
    with pytest.raises(ArtifactError, match="began at another time") as caught:
        merge_shards([first, other], tmp_path / "merged")
    assert "asked another endpoint" in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_a_shard_is_calibrated_and_reads_the_server(known: Any, tmp_path: Path) -> None:
    settings = config(calibrate=True)
    run_shard(
        settings, known.endpoint, tmp_path / "s", prompts=PROMPTS, shard=0, num_shards=1,
        start=lambda: time.time() + 2,
    )  # fmt: skip
    merged = merge_shards([tmp_path / "s"], tmp_path / "merged")
    (scenario,) = report_of(merged)["scenarios"]
    assert scenario["calibration"]["num_requests"] > 0
    tokens = scenario["server"]["figures"]["generation_tokens"]
    assert tokens == 65 * 8


def test_a_killed_calibration_leaves_no_server(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tuneline", "loadtest", "calibrate", "--concurrency", "4"]
    )
    try:
        deadline_s = time.monotonic() + 30
        while not (server := children(process.pid, b"loadtest.known_server")):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    deadline_s = time.monotonic() + 5
    while Path(f"/proc/{server[0]}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not Path(f"/proc/{server[0]}").exists()


def children(parent: int, words: bytes) -> list[int]:
    """Processes of a parent whose command line holds these words."""
    found = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            stat = (directory / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == parent and words in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
    return found


def test_merged_shards_equal_the_single_run(known: Any, tmp_path: Path) -> None:
    settings = config(num_workers=3)
    (scenario,) = settings.scenarios
    plan, workload = make_plan(settings, scenario, known.endpoint, PROMPTS, seed=settings.seed)
    whole = run_workers(plan, None)
    single = judged(settings, scenario, plan, workload, whole)
    paths = []
    for shard in range(3):
        rows = whole.records.index % 3 == shard
        part = Measured(whole.records.select(rows), [whole.workers[shard]], whole.start_unix_s)
        path = tmp_path / f"shard{shard}"
        resolved = config(num_workers=1).model_dump(mode="json")
        with new_artifact(path, "load-shard", config=resolved) as draft:
            write_shard(
                draft.dir, plan, workload, known.endpoint, Served(["known"], None, None, None),
                part, shard, 3,
            )  # fmt: skip
        paths.append(path)
    merged = merge_shards(list(reversed(paths)), tmp_path / "merged")
    stored = Records.load(merged.path / "records-open.npz")
    for name in vars(stored):
        np.testing.assert_array_equal(
            getattr(stored, name), getattr(single.records, name), err_msg=name
        )
    (found,) = report_of(merged)["scenarios"]
    assert found["plan_digest"] == single.plan_digest
    assert found["requests"]["offered"] == 60
    for name, figure in single.stats.latencies.items():
        assert found["latency"][name]["p90"] == figure.p90
        assert found["latency"][name]["n"] == figure.n
    with pytest.raises(ArtifactError, match="shard 1 of 3 is missing"):
        merge_shards([paths[0], paths[2]], tmp_path / "broken")
    with pytest.raises(ArtifactError, match="shard 0 is there twice"):
        merge_shards([paths[0], paths[0], paths[1], paths[2]], tmp_path / "broken")


def test_pods_share_one_schedule(known: Any, tmp_path: Path) -> None:
    # Long enough for two pods to come up, by this machine's own pace.
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import loadtest.worker"], check=True)
    start_unix_s = time.time() + 5 + 6 * (time.monotonic() - began_s)
    threads = [
        threading.Thread(
            target=run_shard,
            args=(config(), known.endpoint, tmp_path / f"s{shard}"),
            kwargs={
                "prompts": PROMPTS,
                "shard": shard,
                "num_shards": 2,
                "start": lambda: start_unix_s,
            },
        )
        for shard in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    merged = merge_shards([tmp_path / "s0", tmp_path / "s1"], tmp_path / "merged")
    records = Records.load(merged.path / "records-open.npz")
    assert records.index.tolist() == list(range(65))
    plan, _ = make_plan(config(), config().scenarios[0], known.endpoint, PROMPTS, seed=0)
    assert plan.arrivals_s is not None
    np.testing.assert_allclose(records.intended_s, plan.arrivals_s, atol=1e-6)
    with pytest.raises(ConfigError, match="in the past"):
        run_shard(
            config(), known.endpoint, tmp_path / "late", prompts=PROMPTS, shard=0, num_shards=1,
            start=lambda: time.time() - 1,
        )  # fmt: skip


@pytest.mark.parametrize("length", [{"num_requests": 12}, {"duration_s": 0.5}])
def test_more_processes_than_streams_lose_no_request(
    known: Any, tmp_path: Path, length: dict[str, Any]
) -> None:
    scenario = {"name": "closed", "concurrency": 2, **length}
    settings = config(scenarios=[scenario], num_workers=3, timeout_s=5.0, num_warmup_requests=0)
    artifact = run_loadtest(settings, known.endpoint, tmp_path / "a", prompts=PROMPTS)
    requests = report_of(artifact)["scenarios"][0]["requests"]
    assert requests["succeeded"] == requests["offered"] >= 6
    # And as pods: of two with two processes each, the second has no stream.
    agreed: list[float] = []
    barrier = threading.Barrier(2, action=lambda: agreed.append(time.time() + 1))

    def start() -> float:
        barrier.wait(30)
        return agreed[0]

    def run(shard: int) -> None:
        run_shard(
            settings.model_copy(update={"num_workers": 2}), known.endpoint, tmp_path / f"s{shard}",
            prompts=PROMPTS, shard=shard, num_shards=2, start=start,
        )  # fmt: skip

    threads = [threading.Thread(target=run, args=(shard,)) for shard in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Records.load(tmp_path / "s1" / "records.npz")) == 0
    merged = merge_shards([tmp_path / "s0", tmp_path / "s1"], tmp_path / "merged")
    requests = report_of(merged)["scenarios"][0]["requests"]
    assert requests["succeeded"] == requests["offered"] >= 6


def test_reports_in_the_forms_of_other_tools(known: Any, tmp_path: Path) -> None:
    artifact = run_loadtest(config(), known.endpoint, tmp_path / "a", prompts=PROMPTS)
    rows = list(csv.DictReader(io.StringIO(csv_text(artifact))))
    assert len(rows) == 65
    assert {row["state"] for row in rows} == {"succeeded"}
    assert all(float(row["first_token_s"]) > float(row["sent_s"]) for row in rows)
    (document,) = vllm_documents(artifact)
    assert document["completed"] == 60
    assert document["total_output_tokens"] == 480
    measured = [row for row in rows if row["warmup"] == "false"]
    ttft_ms = [1e3 * (float(r["first_token_s"]) - float(r["sent_s"])) for r in measured]
    assert document["median_ttft_ms"] == pytest.approx(np.median(ttft_ms), rel=1e-6)
    text = prometheus_text(artifact)
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) > 20
    assert 'tuneline_loadtest_requests{scenario="open",model="known"' in text
    parser = pytest.importorskip("prometheus_client.parser")
    families = list(parser.text_string_to_metric_families(text))
    assert sum(len(family.samples) for family in families) == len(samples)


def test_the_openai_client_sees_the_same_tokens(known: Any) -> None:
    pytest.importorskip("openai")
    settings = config(scenarios=[{"name": "x", "rate_rps": 20.0, "num_requests": 20}])
    found = openai_check(settings, settings.scenarios[0], known.endpoint, prompts=PROMPTS)
    assert found.num_requests == found.num_succeeded == found.num_equal_tokens == 25
    assert found.ttft_p50_s is not None and found.our_ttft_p50_s is not None
    assert found.ttft_p50_s >= 0.03 and found.our_ttft_p50_s >= 0.03
    with pytest.raises(ValueError, match="open loop"):
        openai_check(
            settings, Scenario(name="c", concurrency=1, num_requests=1), known.endpoint,
            prompts=PROMPTS,
        )  # fmt: skip


@pytest.mark.parametrize("fault", ["invalid-sse", "error-event", "reset", "cut", "500"])
def test_the_openai_client_counts_a_broken_answer_as_a_failure(known: Any, fault: str) -> None:
    pytest.importorskip("openai")
    settings = config(
        scenarios=[{"name": "x", "rate_rps": 40.0, "num_requests": 6}], num_warmup_requests=0
    )
    broken = [[{"role": "user", "content": f"fault:{fault}"}]]
    found = openai_check(settings, settings.scenarios[0], known.endpoint, prompts=broken)
    assert (found.num_requests, found.num_succeeded, found.num_equal_tokens) == (6, 0, 0)


def test_tls_is_spoken_and_marked_as_user_clock(start_known_server: Any, tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
         certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    options = ("--certificate", str(certificate), "--private-key", str(key), "--ttft-s", "0.02",
               "--itl-s", "0.002")  # fmt: skip
    with start_known_server(*options, scheme="https") as server:
        settings = config()
        plan, workload = make_plan(
            settings, settings.scenarios[0], server.endpoint, PROMPTS, seed=0
        )
        trusted = replace(plan, ca_file=str(certificate))
        result = judged(
            settings, settings.scenarios[0], trusted, workload, run_workers(trusted, None)
        )
        assert result.stats.num_succeeded == 60
        assert result.client["num_reads_kernel_clock"] == 0 < result.client["num_reads"]
        # A certificate that nobody vouches for is a failure of every request, and no hang.
        refused = judged(settings, settings.scenarios[0], plan, workload, run_workers(plan, None))
    assert refused.stats.errors == {"connection_failed": 60}


def test_a_second_run_into_the_same_directory_is_refused(known: Any, tmp_path: Path) -> None:
    run_loadtest(config(), known.endpoint, tmp_path / "a", prompts=PROMPTS)
    with pytest.raises(ArtifactError, match="exists already"):
        run_loadtest(config(), known.endpoint, tmp_path / "a", prompts=PROMPTS)
    assert open_artifact(tmp_path / "a").kind == "load-report"
