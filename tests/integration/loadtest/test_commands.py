"""`tuneline loadtest ...` as it is typed, against the bundled server of known delays."""

import contextlib
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.config import LoadTestConfig
from loadtest.shards import rendezvous
from loadtest.shards.rendezvous import run_together
from tests.commands import tuneline_here
from tests.timing import on_a_shared_host
from tuneline.core.errors import MissingError

ROOT = Path(__file__).parents[3]
RUN = ROOT / "examples" / "support-tickets" / "run.yaml"
FAST = ("--set", "loadtest.calibrate=false", "--set", "loadtest.max_client_lag_s=2")


def tuneline(*arguments: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a load-test command in this process."""
    before = os.environ.copy()
    os.environ.update(environ)
    try:
        with contextlib.chdir(cwd):
            return tuneline_here("loadtest", *map(str, arguments))
    finally:
        os.environ.clear()
        os.environ.update(before)


def skip_on_a_host_that_takes_the_cpu(code: int, said: str) -> None:
    """Skip the test: the measurement is INVALID, rightly. Unit tests check that rule."""
    reasons = ("the hypervisor took", "a CPU quota stopped")
    if code == 8 and any(reason in said for reason in reasons):
        pytest.skip("this machine's host takes its CPU away: a load test is INVALID here now")


@pytest.fixture(scope="module", autouse=True)
def shared_host() -> Iterator[None]:
    """For the commands that run in this process."""
    with on_a_shared_host():
        yield


def at(known: Any) -> tuple[str, ...]:
    return ("--url", known.endpoint.url, "--model", "known")


@pytest.fixture(scope="module")
def measured(known: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A load report by the plain command."""
    folder = tmp_path_factory.mktemp("measured")
    options = ("--rate", "50", "--requests", "100", "--max-tokens", "8", "--out", "report", *FAST)
    done = tuneline(*at(known), *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "report"


def test_search_says_the_rate_and_the_replicas(known: Any, tmp_path: Path) -> None:
    done = tuneline(
        "search", *at(known), "--set", "loadtest.slo.ttft_s.p50=0.5", *FAST,
        "--start-rate", "20", "--max-rate", "40", "--requests", "60", "--max-tokens", "8",
        "--peak-rate", "100",
        "--out", "found", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["max_rate_rps"] == 40
    # A replica is planned for 70 % of what it holds: 100 / 28 = 3.57.
    assert metrics["capacity"]["replicas"] == 4
    assert (tmp_path / "found" / "rates.png").is_file()


def test_search_by_concurrency_says_the_most_streams(known: Any, tmp_path: Path) -> None:
    done = tuneline(
        "search", *at(known), "--by", "concurrency", "--max-concurrency", "2", "--requests", "30",
        "--set", "loadtest.slo.ttft_s.p50=0.5", *FAST, "--max-tokens", "8",
        "--out", "found", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["max_concurrency"] == 2
    assert (tmp_path / "found" / "concurrency.png").is_file()
    shown = tuneline("report", "found", cwd=tmp_path)
    assert shown.returncode == 0 and "streams" in shown.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("search", "--by", "concurrency", "--max-rate", "9"), "--max-rate: has no meaning"),
        (("search", "--max-concurrency", "9"), "--max-concurrency: has no meaning without --by"),
        (("search", "--time-limit", "soon"), "--time-limit soon: expected a duration"),
        (("sweep", "--concurrencies", "1", "--rates", "1"), "--rates: has no meaning with --conc"),
        (("sweep", "--out", "found"), "--rates, --concurrencies or --servers is required here"),
        (("sweep", "--servers", "list.yaml"), "--url: has no meaning with --servers"),
    ],
)
def test_options_of_the_other_study_are_refused(
    options: tuple[str, ...], message: str, known: Any, tmp_path: Path
) -> None:
    name, *rest = options
    done = tuneline(name, *at(known), *rest, "--out", "found", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr, done.stderr


def test_search_needs_an_objective(known: Any, tmp_path: Path) -> None:
    done = tuneline("search", *at(known), "--out", "found", cwd=tmp_path)
    assert done.returncode == 2
    assert "--set loadtest.slo.ttft_s.p90=0.5" in done.stderr


def test_sweep_measures_each_rate(known: Any, tmp_path: Path) -> None:
    options = ("--rates", "50,20", "--requests", "20", *FAST, "--out", "swept", "--json")
    done = tuneline("sweep", *at(known), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "swept" / "report.json").read_text())
    assert [probe["rate_rps"] for probe in report["probes"]] == [20, 50]
    assert tuneline("sweep", *at(known), "--rates", "a", cwd=tmp_path).returncode == 2


def test_sweep_measures_each_number_of_streams_at_a_url(known: Any, tmp_path: Path) -> None:
    options = ("--concurrencies", "4,1,2", "--requests", "30", *FAST, "--out", "swept")
    done = tuneline("sweep", *at(known), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "swept" / "report.json").read_text())
    assert [probe["concurrency"] for probe in report["probes"]] == [1, 2, 4]
    assert [one["requests"]["offered"] for one in report["scenarios"]] == [30, 30, 48]
    # The known server answers all streams alike: the most streams have the greatest power.
    assert report["axis"] == "concurrency" and report["knee"]["concurrency"] == 4
    assert (tmp_path / "swept" / "concurrency.png").is_file()
    shown = tuneline("report", "swept", cwd=tmp_path)
    assert shown.returncode == 0 and "streams" in shown.stdout


def test_an_invalid_sweep_exits_with_8(known: Any, tmp_path: Path) -> None:
    # No client can keep a lag of a nanosecond, so every rate is INVALID.
    limit = ("--set", "loadtest.max_client_lag_s=1e-9")
    options = ("--rates", "20", "--requests", "20", *FAST, *limit, "--out", "swept", "--json")
    done = tuneline("sweep", *at(known), *options, cwd=tmp_path)
    assert done.returncode == 8, done.stderr
    assert "swept: INVALID" in done.stderr
    assert json.loads(done.stdout)["metrics"]["verdict"] == "INVALID"
    assert json.loads((tmp_path / "swept" / "report.json").read_text())["verdict"] == "INVALID"


def test_compare_two_urls_and_two_reports(
    known: Any, start_known_server: Any, measured: Path, tmp_path: Path
) -> None:
    load = ("--rate", "50", "--requests", "100", "--max-tokens", "8", *FAST)
    with start_known_server(
        "--ttft-s", "0.09", "--itl-s", "0.004", "--num-tokens", "8", "--api-key", "b-s"
    ) as slow:
        done = tuneline(
            "compare", known.endpoint.url, slow.endpoint.url, "--model", "known", "--rounds", "1",
            "--api-key-env-b", "KEY_OF_B", *load, "--out", "compared", cwd=tmp_path, KEY_OF_B="b-s",
        )  # fmt: skip
        assert done.returncode == 6, done.stderr
        assert "ttft_s: B - A is" in done.stderr
        again = tuneline(*at(slow), *load, "--out", "slow", cwd=tmp_path, VLLM_API_KEY="b-s")
        assert again.returncode == 0, again.stderr
    done = tuneline("compare", measured, "slow", "--out", "c", "--json", cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert json.loads(done.stdout)["metrics"]["verdict"] == "FAIL"
    # In a pod: one stream, the document whole, the verdict after it and in the pod's message.
    words = ("loadtest", "compare", str(measured), "slow", "--out", "p", "--json")
    pod = subprocess.run(
        [sys.executable, "-m", "tuneline", *words], cwd=tmp_path,
        env={**os.environ, "TUNELINE_POD_MESSAGE": str(tmp_path / "message")},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (pod.returncode, pod.stderr) == (6, "")
    whole = pod.stdout[pod.stdout.index("{\n") : pod.stdout.index("\n}\n") + 3]
    assert json.loads(whole)["metrics"]["verdict"] == "FAIL"
    assert pod.stdout.partition(whole)[2].startswith("error: p: FAIL")
    assert "error: p: FAIL" in (tmp_path / "message").read_text()
    mixed = tuneline("compare", measured, known.endpoint.url, "--out", "m", cwd=tmp_path)
    assert mixed.returncode == 2
    assert "expected two URLs or two directories" in mixed.stderr
    refused = tuneline("compare", measured, "slow", "--rate", "3", "--out", "r", cwd=tmp_path)
    assert "--rate: has no meaning between two reports" in refused.stderr


@pytest.mark.parametrize("options", [(), ("--tls",)])
def test_calibrate_prints_the_client_s_own_bias(tmp_path: Path, options: tuple[str, ...]) -> None:
    for _ in range(4):
        done = tuneline("calibrate", "--concurrency", "4", *options, "--json", cwd=tmp_path)
        if done.returncode != 8:  # other work on the machine made this client late
            break
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["closed"]
    assert found["tls"] is ("--tls" in options)
    assert found["num_streams"] == 4
    assert found["num_requests"] >= 20
    # The bundled server's delay is 0.1 s; what the client adds to it is far less.
    assert 0.09 < found["true_ttft_p50_s"] < 0.2
    assert abs(found["ttft_bias_p50_s"]) < 0.05


def test_a_folder_of_the_same_name_is_not_taken_for_the_client(tmp_path: Path) -> None:
    """As where benchmarks or load tests of one's own lie in `loadtest/`."""
    (tmp_path / "loadtest").mkdir()
    (tmp_path / "loadtest" / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    command = Path(sys.executable).with_name("tuneline")
    done = subprocess.run(
        [command, "loadtest", "calibrate", "--concurrency", "2"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert "TTFT bias" in done.stdout, done.stderr


def test_shards_merge_into_one_report(known: Any, tmp_path: Path) -> None:
    # Long enough for both to come up, by this machine's own pace.
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import loadtest.shards.shard, tuneline.cli"], check=True)
    start = str(time.time() + 6 + 6 * (time.monotonic() - began_s))
    load = ("--rate", "40", "--requests", "40", *FAST, "--start-at", start)
    commands = [
        [
            sys.executable, "-m", "tuneline", "loadtest", *at(known), *load,
            "--shard", f"{number}/2", "--out", f"shard{number}",
        ]
        for number in range(2)
    ]  # fmt: skip
    running = [subprocess.Popen(c, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) for c in commands]
    assert [process.wait(timeout=400) for process in running] == [0, 0]
    done = tuneline("join", "shard0", "shard1", "--out", "merged", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (scenario,) = json.loads(done.stdout)["report"]["scenarios"]
    assert scenario["requests"]["offered"] == 40
    assert scenario["requests"]["succeeded"] == 40
    short = tuneline("join", "shard0", "--out", "half", cwd=tmp_path)
    assert short.returncode == 3
    assert "shard 1 of 2 is missing" in short.stderr
    assert not (tmp_path / "half").exists()


def test_pods_that_share_a_folder_begin_together_and_leave_one_report(
    known: Any, tmp_path: Path
) -> None:
    load = ("--rate", "40", "--requests", "40", *FAST, "--gather", "pods", "--json")
    commands = [
        [
            sys.executable, "-m", "tuneline", "loadtest", *at(known), *load,
            "--shard", f"{number}/2",
        ]
        for number in range(2)
    ]  # fmt: skip
    running = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    (report, said), (part, _) = [process.communicate(timeout=400) for process in running]
    skip_on_a_host_that_takes_the_cpu(running[0].returncode, said)
    assert [process.returncode for process in running] == [0, 0]
    assert json.loads(part)["kind"] == "load-shard"
    (scenario,) = json.loads(report)["report"]["scenarios"]
    assert scenario["requests"]["offered"] == scenario["requests"]["succeeded"] == 40
    assert {path.name for path in (tmp_path / "pods").iterdir()} == {
        "ready-0", "ready-1", "start", "shard-0", "shard-1", "report",
    }  # fmt: skip
    again = tuneline(*at(known), *load, "--shard", "0/2", cwd=tmp_path)
    assert again.returncode == 3
    assert "was used by an earlier load test" in again.stderr


@pytest.mark.parametrize(
    ("arrived", "problem"),
    [((), "did not come within 1 s: ready-1"), (("ready-1",), "did not end within 1 s: shard-1")],
)
def test_a_pod_that_is_missing_ends_the_wait(
    known: Any,
    arrived: tuple[str, ...],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendezvous, "LEAD_S", 4.0)
    pods = tmp_path / "pods"
    pods.mkdir()
    for name in arrived:
        (pods / name).touch()
    config = LoadTestConfig.model_validate(
        {"calibrate": False, "scenarios": [{"name": "s", "rate_rps": 20, "num_requests": 4}]}
    )
    prompts = [[{"role": "user", "content": "Hello"}]]
    with pytest.raises(MissingError, match=problem):
        run_together(
            config, known.endpoint, pods, prompts=prompts, shard=0, num_shards=2, patience_s=1
        )
    assert not (pods / "report").exists()


@pytest.mark.parametrize("shard", ["2/2", "x", "1"])
def test_a_shard_that_makes_no_sense(known: Any, shard: str, tmp_path: Path) -> None:
    done = tuneline(*at(known), "--shard", shard, "--start-at", "1", "--out", "s", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{shard.split('/')[0]}" in done.stderr


def test_a_report_in_every_form(measured: Path, tmp_path: Path) -> None:
    def written(form: str) -> str:
        done = tuneline("report", measured, "--format", form, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "inter-chunk gap" in written("table")
    assert json.loads(written("json"))["schema_version"] == 5
    rows = list(csv.DictReader(written("csv").splitlines()))
    assert sum(row["warmup"] == "false" for row in rows) == 100
    assert json.loads(written("vllm"))[0]["completed"] == 100
    assert written("json") == tuneline("report", measured, "--json", cwd=tmp_path).stdout
    for nowhere in ("no/where", ".", "/proc/x.csv"):
        done = tuneline("report", measured, "--out", nowhere, cwd=tmp_path)
        assert done.returncode in (2, 3), done.stderr
        assert nowhere in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = tuneline(
        "report", measured, "--format", "prometheus", "--out", "load.prom", cwd=tmp_path
    )
    assert done.returncode == 0
    assert 'tuneline_loadtest_requests{scenario="open"' in (tmp_path / "load.prom").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["load.prom"]
    done = tuneline("report", measured, "--json", "--out", "report.json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"path": "report.json"}


def test_the_openai_client_reads_the_same_tokens(known: Any, tmp_path: Path) -> None:
    options = ("--rate", "20", "--requests", "20", *FAST, "--json")
    done = tuneline("cross-check", *at(known), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["num_requests"] == found["num_succeeded"] == found["num_equal_tokens"] >= 20
    (tmp_path / "failing.jsonl").write_text(json.dumps({"prompt": "fault:500"}) + "\n")
    failing = tuneline(
        "cross-check", *at(known), *options, "--prompts", "failing.jsonl", cwd=tmp_path
    )
    assert failing.returncode == 6
    assert json.loads(failing.stdout)["ttft_p50_s"] is None
    (_, url, *_) = at(known)
    absent = tuneline("cross-check", "--url", url, "--model", "another", *options, cwd=tmp_path)
    assert absent.returncode == 5
    assert "does not serve the model 'another'" in absent.stderr
    closed = tuneline("cross-check", *at(known), "--set", "loadtest.calibrate=false", cwd=tmp_path)
    assert closed.returncode == 2


@pytest.mark.parametrize(
    ("setting", "words"),
    [("route=responses", "workload.route: responses"), ("sessions.think_s.mean=1", "sessions")],
)
def test_the_cross_check_names_the_requests_that_it_does_not_send(
    known: Any, tmp_path: Path, setting: str, words: str
) -> None:
    options = ("--rate", "20", "--set", f"loadtest.workload.{setting}")
    refused = tuneline("cross-check", *at(known), *options, cwd=tmp_path)
    assert refused.returncode == 2
    assert words in refused.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--duration", "inf", "--out", "x"),
        (
            "--prompts",
            "x",
            "--set",
            "loadtest.workload.source=synthetic",
            "--set",
            "loadtest.workload.input_tokens.mean=5",
            "--out",
            "x",
        ),
        ("--rate", "inf", "--out", "x"),
        ("--shard", "0/2", "--start-at", "nan", "--out", "x"),
        ("--shard", "0/2", "--start-at", "1e300", "--out", "x"),
        ("--shard", "0/2", "--out", "x"),
        ("--shard", "0/2", "--start-at", "9", "--gather", "x"),
        ("--shard", "0/2", "--gather", "x", "--out", "y"),
        ("--gather", "x", "--out", "y"),
        ("--api-key-env", "BAD_KEY", "--out", "x"),
        ("--rate", "1"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    known: Any, options: tuple[str, ...], tmp_path: Path
) -> None:
    done = tuneline(*at(known), *options, cwd=tmp_path, BAD_KEY="two words")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "two words" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_key_with_a_line_break_works_and_a_password_in_the_url_does_not(
    known: Any, tmp_path: Path
) -> None:
    load = ("--rate", "50", "--requests", "20", *FAST)
    done = tuneline(*at(known), *load, "--out", "x", cwd=tmp_path, VLLM_API_KEY="s3cret-key\n")
    assert done.returncode == 0, done.stderr
    url = known.endpoint.url.replace("//", "//user:topsecret@")
    refused = tuneline("--url", url, "--model", "known", *load, "--out", "y", cwd=tmp_path)
    assert refused.returncode == 2
    texts = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(texts) == 2
    for text in [done.stdout, done.stderr, refused.stderr, *texts]:
        assert "s3cret" not in text and "topsecret" not in text


def test_commands_that_are_misspelt_or_given_too_much(tmp_path: Path) -> None:
    done = tuneline("serch", "x.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "No such command 'serch'" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", RUN, "--start-at", "5"), "--start-at: has no meaning without --url"),
        (("run", RUN, "--api-key-env", "X"), "--api-key-env: has no meaning without --url"),
        (("search", RUN), "--out is required"),
    ],
    ids=["a start", "a key", "a search"],
)
def test_options_that_go_with_others(
    tmp_path: Path, arguments: tuple[Any, ...], expected: str
) -> None:
    refused = tuneline(*arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert expected in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_the_load_test_can_be_set_without_a_run(known: Any, tmp_path: Path) -> None:
    options = ("--set", "training.learning_rate=1", "--out", "x")
    done = tuneline(*at(known), *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "only loadtest.* can be set" in done.stderr
