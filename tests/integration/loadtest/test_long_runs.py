"""Runs whose records go to disk while they go on, on the known server."""

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import run as run_module
from loadtest.client.processes import SpillTo
from loadtest.client.records import Records
from loadtest.client.spill import read_chunks
from loadtest.judging import long_reading, samples
from loadtest.judging.latency import tpot_s
from loadtest.judging.server_metrics import Scrape
from loadtest.report.files import load_records, read_report
from loadtest.report.formats import report_text
from loadtest.report.page_plots import _tokens_per_s
from loadtest.run import run_loadtest
from loadtest.studies.compare import compare_reports
from tests.integration.loadtest.small import PROMPTS, config, report_of
from tuneline.core.artifact import verify_artifact
from tuneline.core.errors import ServerError

pytestmark = pytest.mark.usefixtures("shared_host")


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a client write its records after a few reads."""
    monkeypatch.setattr(run_module, "SpillTo", functools.partial(SpillTo, most_reads=20))


@pytest.mark.usefixtures("early")
def test_a_run_on_disk_counts_every_request_of_the_server(known: Any, tmp_path: Path) -> None:
    settings = config(
        scenarios=[{"name": "open", "rate_rps": 80.0, "num_requests": 240}], num_workers=2
    )
    before = len(known.truths())
    artifact = run_loadtest(settings, known.endpoint, tmp_path / "a", prompts=PROMPTS)
    verify_artifact(artifact)
    (scenario,) = report_of(artifact)["scenarios"]
    assert scenario["spilled"] is True
    assert scenario["requests"]["succeeded"] == scenario["requests"]["offered"] == 240
    records = load_records(artifact.path, "open")
    assert records.index.tolist() == list(range(245))
    truths = {int(one["request_id"]): one for one in known.truths()[before:]}
    assert len(truths) == 245
    true_s = np.array(
        [(one["token_write_ns"][0] - one["received_ns"]) / 1e9 for _, one in sorted(truths.items())]
    )
    found_s = records.first_token_s - records.sent_s
    assert abs(float(np.median(found_s - true_s))) < 0.003
    assert records.tokens.sum() == sum(one["num_tokens"] for one in truths.values())
    measured = np.median((records.first_token_s - records.intended_s)[5:])
    assert scenario["latency"]["ttft_s"]["percentiles"]["p50"] == pytest.approx(measured, rel=0.004)
    assert scenario["over_time"]["num_offered"]
    assert len(report_text(artifact, "csv").splitlines()) == 246
    assert "TTFT" in report_text(artifact, "html")
    same = compare_reports(artifact.path, artifact.path, tmp_path / "c")
    found = {one["metric"]: one for one in report_of(same)["scenarios"][0]["differences"]}
    assert {(one["num_pairs"], one["difference"]) for one in found.values()} == {(240, 0.0)}
    tpot = np.mean(tpot_s(records.select(~records.warmup)))
    assert found["tpot_s"]["mean_a"] == pytest.approx(tpot)


@pytest.mark.usefixtures("early")
def test_the_page_of_a_sample_has_the_figures_of_the_run(
    known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_reading, "MAX_SAMPLE", 40)
    prompts = [*PROMPTS[:9], [{"role": "user", "content": "fault:500"}]]
    settings = config(scenarios=[{"name": "x", "rate_rps": 150.0, "num_requests": 200}])
    artifact = run_loadtest(settings, known.endpoint, tmp_path / "a", prompts=prompts)
    (scenario,) = report_of(artifact)["scenarios"]
    page = report_text(artifact, "html")
    num_failed = scenario["requests"]["failed"]
    assert num_failed > 10
    assert f"{num_failed} requests failed; " in page and "are shown, each as a vertical" in page
    assert ", N 200." in page
    report = read_report(artifact.path)
    curve = _tokens_per_s(report.scenarios[0], load_records(artifact.path, "x"))
    rates = scenario["over_time"]["output_tokens_per_s"]
    assert [rate for _, rate in curve] == [*rates, rates[-1]]


@pytest.mark.usefixtures("early")
def test_a_full_disk_ends_the_run_with_a_report(start_known_server: Any, tmp_path: Path) -> None:
    settings = config(scenarios=[{"name": "x", "concurrency": 4, "duration_s": 60.0}])
    partial = tmp_path / ".a.partial"

    def fill(directory: Path, scenario: str) -> SpillTo:
        spill = SpillTo(directory, scenario, most_reads=20)
        (spill.directory / "records-x.0.spill").symlink_to("/dev/full")
        return spill

    with pytest.MonkeyPatch.context() as patch, start_known_server("--itl-s", "0.004") as server:
        patch.setattr(run_module, "SpillTo", fill)
        # The artifact of a real full disk has no link in it; let this link go before the digests.
        write = run_module.write_report

        def write_and_unlink(*arguments: Any) -> None:
            write(*arguments)
            (partial / "records-x.0.spill").unlink()

        patch.setattr(run_module, "write_report", write_and_unlink)
        began_s = time.monotonic()
        artifact = run_loadtest(settings, server.endpoint, tmp_path / "a", prompts=PROMPTS)
    assert time.monotonic() - began_s < 50
    report = report_of(artifact)
    assert report["verdict"] == "INVALID"
    assert any("the disk became full" in problem for problem in report["problems"])
    assert report["scenarios"][0]["requests"]["succeeded"] >= 4


def test_a_killed_run_leaves_records_that_can_be_read(known: Any, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from loadtest.client.prepare import make_plan
from loadtest.client.processes import SpillTo, run_workers
from tests.integration.loadtest.small import PROMPTS, config
from tuneline.core.endpoint import Endpoint
settings = config(scenarios=[{{"name": "x", "concurrency": 8, "duration_s": 60.0}}])
endpoint = Endpoint({known.endpoint.url!r}, "known")
plan, _ = make_plan(settings, settings.scenarios[0], endpoint, PROMPTS, seed=0)
print("go", flush=True)
run_workers(plan, None, spill=SpillTo(Path({str(tmp_path)!r}), "x", most_reads=20))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    path = tmp_path / "records-x.0.spill"
    deadline_s = time.monotonic() + 120
    while sum(map(len, read_chunks(path))) < 100 if path.exists() else True:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.5)  # the client process ends with its parent
    chunks = list(read_chunks(path))
    assert sum(map(len, chunks)) >= 100
    for chunk in chunks:
        assert (chunk.state == 0).all()
        assert (chunk.tokens == 8).all()


@pytest.mark.usefixtures("early")
def test_a_killed_client_process_leaves_the_records(known: Any, tmp_path: Path) -> None:
    settings = config(scenarios=[{"name": "x", "concurrency": 8, "duration_s": 130.0}])
    file = tmp_path / ".a.partial" / "records-x.0.spill"

    def kill() -> None:
        deadline_s = time.monotonic() + 120
        while time.monotonic() < deadline_s:
            if file.exists() and sum(map(len, read_chunks(file))) >= 50:
                break
            time.sleep(0.05)
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            if b"loadtest.client.process" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ServerError, match="load-test client ended with code -9"):
        run_loadtest(settings, known.endpoint, tmp_path / "a", prompts=PROMPTS)
    killer.join()
    assert not (tmp_path / "a").exists()
    (kept,) = (tmp_path / "a.records").iterdir()
    assert sum(map(len, read_chunks(kept))) >= 50


def test_an_interrupted_run_keeps_the_records_of_every_scenario(
    start_known_server: Any, tmp_path: Path
) -> None:
    settings = {
        "scenarios": [
            {"name": "one", "concurrency": 2, "num_requests": 10},
            {"name": "two", "concurrency": 2, "duration_s": 60.0},
        ],
        "num_warmup_requests": 5, "calibrate": False, "max_client_lag_s": 1.0,
    }  # fmt: skip
    words = [f"--set=loadtest.{name}={json.dumps(value)}" for name, value in settings.items()]
    with start_known_server("--ttft-s", "0.01", "--itl-s", "0.001") as known:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuneline", "loadtest", "run", "--url", known.endpoint.url,
             "--model", "known", "--max-tokens", "8", "--out", tmp_path / "a", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline_s = time.monotonic() + 120
        while len(known.truths()) < 100:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT and not (tmp_path / "a").exists()
    assert "its records so far are in" in said and "goes on" not in said
    one, two = (Records.load(tmp_path / "a.records" / f"records-{n}.npz") for n in ("one", "two"))
    assert len(one) == 15 and (one.state == 0).all()
    assert len(two) > 50 and np.mean(two.state == 0) > 0.9


def test_a_leak_and_a_drift_of_the_server_fail_the_soak(
    start_known_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.measure.JUDGED_INTERVAL_S", 0.15)
    limits = {"max_server_memory_growth_mib_per_hour": 3600.0, "max_latency_drift_per_hour": 36.0}
    settings = config(
        scenarios=[{"name": "x", "concurrency": 4, "duration_s": 12.0}],
        slo={"max_error_rate": None, **limits}, max_tokens=4,
    )  # fmt: skip
    delays = ("--ttft-s", "0.02", "--itl-s", "0.002")
    with start_known_server(*delays) as steady:
        good = run_loadtest(settings, steady.endpoint, tmp_path / "a", prompts=PROMPTS)
    with start_known_server(*delays, "--leak-mib-per-s", "5", "--drift", "0.01") as leaking:
        bad = run_loadtest(settings, leaking.endpoint, tmp_path / "b", prompts=PROMPTS)
    found = {one["name"]: one for one in report_of(good)["scenarios"][0]["objectives"]}
    assert found["max_server_memory_growth_mib_per_hour"]["verdict"] == "PASS"
    report = report_of(bad)
    found = {one["name"]: one for one in report["scenarios"][0]["objectives"]}
    memory = found["max_server_memory_growth_mib_per_hour"]
    assert memory["verdict"] == "FAIL"
    assert memory["measured"] == pytest.approx(5 * 3600, rel=0.15)
    assert found["max_latency_drift_per_hour"]["verdict"] == "FAIL"
    drifts = {one["name"]: one for one in report["scenarios"][0]["over_time"]["drifts"]}
    assert drifts["ttft_s"]["per_hour"] == pytest.approx(0.01 * 3600, rel=0.4)
    assert "Server memory in x" in report_text(bad, "html")


def test_samples_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_SAMPLES", 8)
    scrape = Scrape({samples.MEMORY: 2.0**20})
    with samples.sampled(lambda: scrape, 0.005) as found:
        time.sleep(0.6)
    assert 3 <= len(found.time_s) <= 8
    assert found.memory_mib == [1.0] * len(found.time_s)


def test_a_wall_clock_that_is_set_moves_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    scrape = Scrape()
    set_by = itertools.chain([0.0], itertools.repeat(7200.0))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(set_by))
    began_s = real()
    with samples.sampled(lambda: scrape, 0.005) as found:
        while len(found.time_s) < 3:
            time.sleep(0.005)
    assert all(0 <= at_s - began_s < 3600 for at_s in found.time_s)
