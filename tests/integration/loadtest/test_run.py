"""A whole load test against the server of known delays, and every endpoint that is none."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadtest import read_prompts, run_loadtest
from loadtest.client import server_check
from loadtest.config import SLO, LoadTestConfig, Scenario
from loadtest.workload import build
from tests.integration.loadtest.small import Answering, report_of
from tests.integration.loadtest.small import config as small_config
from tuneline.core.artifact import Input, open_artifact, verify_artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, DataError, ServerError

pytestmark = pytest.mark.usefixtures("shared_host")

CONFIG = LoadTestConfig(
    scenarios=[
        Scenario(name="open", rate_rps=40.0, num_requests=40),
        Scenario(name="closed", concurrency=4, num_requests=40),
    ],
    slo=SLO(ttft_s={"p90": 2.0}, tpot_s={"p90": 0.5}),
    max_tokens=8,
    max_client_lag_s=1.0,
)
DIGEST = "sha256:0123456789ab" + "0" * 52


def test_a_load_report_is_written_and_bound_to_the_artifact(known: Any, tmp_path: Path) -> None:
    inputs = [Input(role="model", kind="model", digest=DIGEST)]
    artifact = run_loadtest(
        CONFIG, known.endpoint, tmp_path / "load", prompts=read_prompts(None), inputs=inputs
    )
    verify_artifact(artifact)
    assert artifact.kind == "load-report"
    assert artifact.manifest.inputs == inputs
    assert artifact.manifest.metrics["verdict"] == "PASS"
    assert {entry.path for entry in artifact.manifest.files} == {
        "report.json", "latency_cdf.png", "ttft_over_time.png", "records-open.npz",
        "records-closed.npz",
    }  # fmt: skip
    report = json.loads((artifact.path / "report.json").read_text())
    assert report["endpoint"]["artifact_short_digest"] == "0123456789ab"
    assert report["endpoint"]["artifact_name"] == "known@0123456789ab"
    assert [scenario["name"] for scenario in report["scenarios"]] == ["open", "closed"]
    for scenario in report["scenarios"]:
        assert scenario["requests"] == {
            "offered": 40, "succeeded": 40, "failed": 0, "unfinished": 0, "cancelled": 0,
            "warmup": 8, "error_rate": 0.0,
            "error_rate_ci95": [0.0, pytest.approx(3.841459 / (40 + 3.841459))],
        }  # fmt: skip
        assert scenario["tokens"]["num_output_tokens"] == 320
        ttft = scenario["latency"]["ttft_s"]
        assert (ttft["unit"], ttft["n"], ttft["percentiles"]["p99"]) == ("s", 40, None)
        assert "at least 299 are needed" in ttft["withheld"]["p99"]
        assert 0.03 <= ttft["percentiles"]["p50"] < 0.2
    assert str(tmp_path) not in (artifact.path / "report.json").read_text()
    assert open_artifact(tmp_path / "load").digest == artifact.digest


def test_a_run_beyond_its_unique_prompts_says_so(
    known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "MAX_UNIQUE_PROMPTS", 20)
    said = {}
    for num_requests in (12, 40):
        settings = small_config(
            scenarios=[{"name": "x", "rate_rps": 100.0, "num_requests": num_requests}],
            workload={"unique_prompts": True},
        )
        artifact = run_loadtest(
            settings, known.endpoint, tmp_path / str(num_requests), prompts=read_prompts(None)
        )
        (scenario,) = report_of(artifact)["scenarios"]
        said[num_requests] = [one for one in scenario["warnings"] if "unique_prompts made" in one]
    assert said[12] == []
    assert said[40][0].startswith("unique_prompts made 20 prompts for 45 requests")


def test_a_missed_objective_is_a_verdict_and_no_exception(known: Any, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"slo": SLO(ttft_s={"p50": 0.001})})
    artifact = run_loadtest(config, known.endpoint, tmp_path / "load", prompts=read_prompts(None))
    assert artifact.manifest.metrics["verdict"] == "FAIL"
    problems = artifact.manifest.metrics["problems"]
    assert len(problems) == 2
    assert problems[0].startswith("open: ttft_s.p50: ")


def test_a_server_that_dies_before_the_end_fails_and_is_not_measured_again(
    start_known_server: Any, tmp_path: Path
) -> None:
    # A ramp, so that the arrivals which a dead server misses would change the rate.
    scenario = Scenario(
        name="x", arrival="ramp", rate_rps=20.0, rate_end_rps=100.0, num_requests=300
    )
    config = CONFIG.model_copy(
        update={
            "scenarios": [scenario],
            "slo": SLO(max_error_rate=0.01),
            "num_warmup_requests": 0,
            "max_client_lag_s": 0.1,
            "calibrate": False,
        }
    )
    with start_known_server("--ttft-s", "0.01", "--itl-s", "0.001") as server:

        def kill_after_250() -> None:
            while len(server.truths()) < 250:
                time.sleep(0.05)
            server.process.kill()

        killer = threading.Thread(target=kill_after_250)
        killer.start()
        artifact = run_loadtest(config, server.endpoint, tmp_path / "a", prompts=read_prompts(None))
        killer.join()
    (found,) = json.loads((artifact.path / "report.json").read_text())["scenarios"]
    assert found["verdict"] == "FAIL", found["problems"]
    assert found["requests"]["succeeded"] >= 240
    assert 20 <= found["requests"]["failed"] <= 60
    assert not any("measured twice" in warning for warning in found["warnings"])


def test_another_artifact_behind_the_endpoint_is_an_error(known: Any, tmp_path: Path) -> None:
    inputs = [Input(role="model", kind="model", digest="sha256:" + "f" * 64)]
    with pytest.raises(ServerError, match="serves known@0123456789ab; expected the artifact ffff"):
        run_loadtest(
            CONFIG, known.endpoint, tmp_path / "load", prompts=read_prompts(None), inputs=inputs
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_served_names_those_that_are(known: Any, tmp_path: Path) -> None:
    endpoint = Endpoint(known.endpoint.url, "knwon")
    with pytest.raises(ServerError, match="does not serve the model 'knwon'; it serves known") as e:
        run_loadtest(CONFIG, endpoint, tmp_path / "load", prompts=read_prompts(None))
    assert e.value.hint == "Try: --model known"


def test_a_missing_key_is_asked_for(start_known_server: Any, tmp_path: Path) -> None:
    with start_known_server("--api-key", "right") as server:
        with pytest.raises(ServerError, match="asks for an API key"):
            run_loadtest(CONFIG, server.endpoint, tmp_path / "a", prompts=read_prompts(None))
        endpoint = Endpoint(server.endpoint.url, "known", "wrong-key")
        with pytest.raises(ServerError, match="refuses the API key") as error:
            run_loadtest(CONFIG, endpoint, tmp_path / "a", prompts=read_prompts(None))
        assert "wrong-key" not in str(error.value)


def test_a_port_where_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = Endpoint(f"http://127.0.0.1:{unused.getsockname()[1]}/v1", "m")
        with pytest.raises(ServerError, match="connection refused"):
            run_loadtest(CONFIG, endpoint, tmp_path / "a", prompts=read_prompts(None))


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    class Handler(Answering):
        def do_GET(self) -> None:
            self.answer(status, body)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>hello</html>", "holds no list of models"),
        (200, b'{"data": []}', "holds no list of models"),
        (404, b"not found", "expected an OpenAI-compatible server"),
        (500, b"", "with status 500"),
    ],
)
def test_something_else_answers(status: int, body: bytes, message: str, tmp_path: Path) -> None:
    with answering(status, body) as url, pytest.raises(ServerError, match=message):
        run_loadtest(CONFIG, Endpoint(url, "m"), tmp_path / "a", prompts=read_prompts(None))


def test_something_that_is_not_http_answers(tmp_path: Path) -> None:
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); c, _ = s.accept(); c.recv(9999); "
        "c.sendall(b'220 mail ready\\r\\n'); c.close()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        with pytest.raises(ServerError, match="does not speak HTTP"):
            run_loadtest(CONFIG, Endpoint(url, "m"), tmp_path / "a", prompts=read_prompts(None))
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def dripping(head: bytes, piece: bytes, pause_s: float) -> Iterator[str]:
    """A server that begins with `head` and then writes `piece` again and again without an end."""
    stop = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(9999)
            try:
                connection.sendall(head)
                while not stop.wait(pause_s):
                    connection.sendall(piece)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    ("head", "piece", "pause_s", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" ", 0.05, "no whole answer"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y", 0.05, "no whole answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536, 0.0, "more than 10 MB"),
    ],
)
def test_an_answer_without_an_end_is_not_waited_for(
    head: bytes, piece: bytes, pause_s: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_check, "TIMEOUT_S", 1.0)
    began_s = time.monotonic()
    with dripping(head, piece, pause_s) as url, pytest.raises(ServerError, match=message):
        server_check.get(url, "/v1/models", None)
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("url", ["ftp://x/v1", "127.0.0.1:8000/v1", "http://", "http://x:99999/v1"])
def test_a_url_that_is_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Try: --url http://127.0.0.1:8000/v1"):
        run_loadtest(CONFIG, Endpoint(url, "m"), tmp_path / "a", prompts=read_prompts(None))


def test_prompts_are_read_in_each_form_and_every_bad_line_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    message = {"role": "user", "content": "hi"}
    lines = [[message], {"messages": [message]}, {"prompt": [message], "x": 1}, {"prompt": "hi"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert read_prompts(path) == [[message]] * 4
    path.write_text('[{"role": "user"}]\n{half\n\n3\n', encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_prompts(path)
    assert [line.split(": ")[1] for line in error.value.problems] == ["line 1", "line 2", "line 4"]
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(path)
    with pytest.raises(DataError, match="No such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="no prompts"):
        run_loadtest(CONFIG, Endpoint("http://x/v1", "m"), tmp_path / "a", prompts=[])
