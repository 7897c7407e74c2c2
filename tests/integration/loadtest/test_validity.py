"""Calibration, validity, reports and the other clients, on the known server."""

import contextlib
import csv
import io
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.calibration.calibrate import calibrate, compare_with_truth
from loadtest.calibration.certificate import write_certificate
from loadtest.client import processes as workers
from loadtest.client.prepare import make_plan
from loadtest.client.processes import run_workers
from loadtest.client.records import Records
from loadtest.config import Scenario
from loadtest.measure import judged
from loadtest.report.prometheus import prometheus_text
from loadtest.report.requests_csv import csv_text
from loadtest.report.vllm_bench import vllm_documents
from loadtest.run import run_loadtest
from loadtest.studies.cross_check import cross_check
from tests.integration.loadtest.small import PROMPTS, config, report_of
from tuneline.core.artifact import open_artifact
from tuneline.core.errors import ArtifactError

pytestmark = pytest.mark.usefixtures("shared_host")


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


def test_an_https_endpoint_is_calibrated_over_tls() -> None:
    found = calibrate(config(), Scenario(name="x", rate_rps=50.0, num_requests=9), tls=True)
    assert found.tls
    assert found.problems in ([], [p for p in found.problems if "headroom" in p])
    assert found.num_requests == 100
    assert found.ttft_bias_p50_s is not None and abs(found.ttft_bias_p50_s) < 0.02


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
    assert "0% of the prompt tokens; 90% is declared" in artifact.manifest.metrics["problems"][0]


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
    assert any(
        "measured twice: the first measurement" in warning for warning in scenario["warnings"]
    )


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


def test_a_killed_calibration_leaves_no_server(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tuneline", "loadtest", "calibrate", "--concurrency", "4"]
    )
    try:
        deadline_s = time.monotonic() + 120
        while not (server := children(process.pid, b"loadtest.calibration.known_server")):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    deadline_s = time.monotonic() + 60
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


def test_the_openai_client_sees_the_same_tokens_behind_a_proxy_variable(
    known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, nowhere)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    settings = config(scenarios=[{"name": "x", "rate_rps": 20.0, "num_requests": 20}])
    found = cross_check(settings, settings.scenarios[0], known.endpoint, prompts=PROMPTS)
    assert found.num_requests == found.num_succeeded == found.num_equal_tokens == 25
    assert found.ttft_p50_s is not None and found.our_ttft_p50_s is not None
    assert found.ttft_p50_s >= 0.03 and found.our_ttft_p50_s >= 0.03
    with pytest.raises(ValueError, match="open loop"):
        cross_check(
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
    found = cross_check(settings, settings.scenarios[0], known.endpoint, prompts=broken)
    assert (found.num_requests, found.num_succeeded, found.num_equal_tokens) == (6, 0, 0)


def test_tls_is_spoken_and_the_kernel_s_clock_kept(start_known_server: Any, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
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
        assert result.client.num_reads_kernel_clock == result.client.num_reads > 0
        # A certificate that nobody vouches for is a failure of every request, and no hang.
        refused = judged(settings, settings.scenarios[0], plan, workload, run_workers(plan, None))
    assert refused.stats.errors == {"connection_failed": 60}


def test_a_second_run_into_the_same_directory_is_refused(known: Any, tmp_path: Path) -> None:
    run_loadtest(config(), known.endpoint, tmp_path / "a", prompts=PROMPTS)
    with pytest.raises(ArtifactError, match="exists already"):
        run_loadtest(config(), known.endpoint, tmp_path / "a", prompts=PROMPTS)
    assert open_artifact(tmp_path / "a").kind == "load-report"
