"""The client against the server of known delays: times, tokens, and every way to fail."""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import asdict, replace
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.calibration.certificate import write_certificate
from loadtest.calibration.known_stream import FAULTS
from loadtest.calibration.start import known_server
from loadtest.client.prepare import make_plan, with_unsent
from loadtest.client.processes import Counters, run_workers
from loadtest.client.records import FAILED, SUCCEEDED
from loadtest.config import LoadTestConfig, Scenario
from loadtest.measure import judged
from loadtest.report.build import Result
from loadtest.run import run_loadtest
from tests.integration.loadtest.small import Answering, report_of
from tests.integration.loadtest.small import config as small_config
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, ServerError

pytestmark = pytest.mark.usefixtures("shared_host")

# The class of each fault; None for a complete answer.
CLASSES = {
    None: None,
    "401": "http_401",
    "404": "http_404",
    "429": "http_429",
    "500": "http_500",
    "503": "http_503",
    "stall": "stalled",
    "silent": "timeout",
    "reset": "connection_reset",
    "reset-early": "connection_reset",
    "cut": "truncated_stream",
    "no-done": None,
    "invalid-sse": "invalid_sse",
    "error-event": "error_event",
    "not-stream": "not_a_stream",
    "empty": "empty_answer",
    "stop-only": None,
    "no-usage": None,
    "not-http": "protocol_error",
    "role-early": None,
    "multi": None,
    "split": None,
    "length": None,
    "close": None,
    "crlf": None,
}


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)
ANSWER = HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENTS), EVENTS)


def prompts(faults: list[str | None]) -> list[list[dict[str, str]]]:
    texts = ["hello" if fault is None else f"please fault:{fault} now" for fault in faults]
    return [[{"role": "user", "content": text}] for text in texts]


def measure(
    endpoint: Endpoint, scenario: dict[str, Any], faults: list[str | None] | None = None,
    ca_file: str | None = None, **options: Any,
) -> Result:  # fmt: skip
    values = {"num_warmup_requests": 0, "max_tokens": 8, "timeout_s": 10.0, **options}
    config = LoadTestConfig.model_validate({"scenarios": [{"name": "x", **scenario}], **values})
    plan, workload = make_plan(
        config, config.scenarios[0], endpoint, prompts(faults or [None]), seed=config.seed
    )
    plan = replace(plan, ca_file=ca_file)
    return judged(config, config.scenarios[0], plan, workload, run_workers(plan, endpoint.api_key))


def test_every_fault_is_known_here() -> None:
    # `few` is a fault of an answer with vectors or scores: test_pooled_routes.py.
    assert CLASSES.keys() - {None} == FAULTS.keys() - {"few"}


@pytest.mark.parametrize("scenario", [{"concurrency": 12}, {"rate_rps": 150.0}])
@pytest.mark.parametrize(("num_workers", "tls"), [(1, False), (2, False), (1, True)])
def test_every_fault_is_classified_and_every_request_accounted_for(
    scenario: dict[str, Any], num_workers: int, tls: bool
) -> None:
    faults = list(CLASSES)
    with known_server("--ttft-s", "0.03", "--itl-s", "0.004", tls=tls) as server:
        result = measure(
            server.endpoint,
            {**scenario, "num_requests": 4 * len(faults)},
            faults,
            server.ca_file,
            timeout_s=3.0,
            num_workers=num_workers,
        )
    stats = result.stats
    expected = Counter({name: 4 for name in CLASSES.values() if name is not None})
    expected["connection_reset"] = 8
    assert Counter(stats.errors) == expected
    assert stats.num_offered == 4 * len(faults)
    assert stats.num_succeeded == 4 * sum(name is None for name in CLASSES.values())
    assert stats.num_unfinished == 0
    assert stats.retry_after_s == [2.0]
    assert "slow down" in result.examples["http_429"]
    assert result.judgement.verdict in ("FAIL", "INVALID")
    # Whole answers have exactly the tokens asked for, however their bytes were cut.
    ok = result.records.select(result.records.state == SUCCEEDED)
    alike = stats.num_succeeded - 8  # without those of one token, and of an unknown number
    assert sorted(ok.tokens[~np.isnan(ok.tokens)].tolist()) == [1.0] * 4 + [8.0] * alike
    assert not np.isnan(ok.first_token_s).any() and not np.isnan(ok.last_token_s).any()


def test_times_are_the_servers_own(known: Any) -> None:
    before = len(known.truths())
    result = measure(known.endpoint, {"concurrency": 32, "num_requests": 320})
    truths = {int(truth["request_id"]): truth for truth in known.truths()[before:]}
    records = result.records
    assert len(records) == len(truths) == 320
    assert result.stats.num_succeeded == 320
    assert result.stats.tokens.num_output_tokens == 320 * 8
    true_s = np.array(
        [
            (truths[index]["token_write_ns"][0] - truths[index]["received_ns"]) / 1e9
            for index in records.index
        ]
    )
    found_s = records.first_token_s - records.sent_s
    bias_ms = 1e3 * (np.median(found_s) - np.median(true_s))
    paired_ms = 1e3 * float(np.median(found_s - true_s))
    print(f"TTFT bias p50 at 32 streams: {bias_ms:.3f} ms; of the same request {paired_ms:.3f} ms")
    # A quiet machine stays below 1 ms; other work on this one may add to it.
    assert abs(paired_ms) < 5
    assert (found_s - true_s).min() > -0.001
    # Every token, of every request, not before it was written.
    written = np.concatenate([truths[index]["token_write_ns"] for index in records.index]) / 1e9
    start_s = np.median(written - records.event_s)
    assert len(written) == 320 * 8
    assert np.median(np.abs(records.event_s + start_s - written)) < 0.005


def test_kernel_times_are_used_and_said_so(known: Any) -> None:
    result = measure(known.endpoint, {"concurrency": 2, "num_requests": 10})
    assert result.client.num_reads >= 10
    assert result.client.num_reads_kernel_clock == result.client.num_reads


def test_a_role_delta_is_not_a_first_token(known: Any) -> None:
    result = measure(known.endpoint, {"concurrency": 4, "num_requests": 20}, ["role-early"])
    records = result.records
    assert result.stats.num_succeeded == 20
    first_byte_s = np.median(records.first_byte_s - records.sent_s)
    ttft_s = np.median(records.first_token_s - records.sent_s)
    assert ttft_s >= 0.028 > first_byte_s


def test_an_open_loop_keeps_its_schedule_when_the_server_is_slow(start_known_server: Any) -> None:
    with start_known_server("--ttft-s", "1.0", "--itl-s", "0") as server:
        result = measure(server.endpoint, {"rate_rps": 100.0, "num_requests": 100})
    assert result.stats.num_succeeded == 100
    assert result.stats.arrivals_scheduled.rate_rps == pytest.approx(
        result.stats.arrivals_delivered.rate_rps, rel=0.05
    )
    # All were sent before half of them had been answered.
    assert np.sum(result.records.first_token_s < result.records.sent_s.max()) < 60


def test_no_request_waits_for_a_connection_while_the_queue_grows(start_known_server: Any) -> None:
    with start_known_server("--ttft-s", "1.5", "--itl-s", "0") as server:
        values = {"scenarios": [{"name": "x", "rate_rps": 40.0, "num_requests": 100}]}
        config = LoadTestConfig.model_validate({**values, "num_warmup_requests": 0})
        plan, _ = make_plan(config, config.scenarios[0], server.endpoint, prompts([None]), seed=0)
        # Sixty are in flight at once: far more than are opened before the start.
        few = replace(plan, num_connections=32)
        measured = run_workers(few, None)
    assert np.all(measured.records.state == SUCCEEDED)
    check = measured.workers[0]["self_check"]
    print(check["num_spares_opened"], check["num_connects_in_window"])
    assert 28 <= check["num_spares_opened"] <= 68  # all 100 requests need no more connections
    assert check["num_connects_in_window"] <= 4  # more if the loop stopped for a while


def test_a_request_begins_to_connect_at_once(start_known_server: Any) -> None:
    # The server closes each connection. With 30 ms between tokens, the client naps for 3 ms.
    lags_s: list[float] = []
    with start_known_server("--ttft-s", "0.05", "--itl-s", "0.03") as server:
        while not lags_s or (min(lags_s) > 0.0015 and len(lags_s) < 4):  # a busy machine is late
            result = measure(server.endpoint, {"concurrency": 4, "num_requests": 40}, ["close"])
            lags_s.append(float(np.median(result.records.ready_s - result.records.intended_s)))
    assert np.all(result.records.state == SUCCEEDED)
    assert np.sum(result.records.connect_s > 0) >= 36
    assert min(lags_s) < 0.0015


def test_a_burst_opens_no_connection_that_nothing_is_left_to_use(known: Any) -> None:
    values = {"scenarios": [{"name": "x", "arrival": "burst", "num_requests": 60}]}
    config = LoadTestConfig.model_validate({**values, "num_warmup_requests": 0, "max_tokens": 8})
    plan, _ = make_plan(config, config.scenarios[0], known.endpoint, prompts([None]), seed=0)
    measured = run_workers(replace(plan, num_connections=16), None)
    assert np.all(measured.records.state == SUCCEEDED)
    check = measured.workers[0]["self_check"]
    assert (check["num_connects_in_window"], check["num_spares_opened"]) == (44, 0)


def test_a_server_that_closes_idle_connections_is_not_asked_for_more_at_once() -> None:
    # Takes connections, answers the requests on the first four, closes each other at once.
    taken = []

    def serve(connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                connection.sendall(ANSWER)

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(connection)
            if len(taken) > 4:
                connection.close()
            else:
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "x")
        values = {"scenarios": [{"name": "x", "rate_rps": 50.0, "num_requests": 150}]}
        config = LoadTestConfig.model_validate({**values, "num_warmup_requests": 0})
        plan, _ = make_plan(config, config.scenarios[0], endpoint, prompts([None]), seed=0)
        measured = run_workers(replace(plan, num_connections=64), None)
        listener.shutdown(socket.SHUT_RDWR)
    # The first requests may meet connections that the server is about to close.
    assert np.sum(measured.records.state == SUCCEEDED) >= 130
    check = measured.workers[0]["self_check"]
    assert check["num_spares_opened"] <= 4 * 4  # at most four at a time, in three seconds


def test_a_server_that_ends_tls_with_its_answer_gets_no_further_request(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(connection: socket.socket) -> None:
        """One answer; its last bytes and the end of TLS in one write."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        with connection:
            for step in (tls.do_handshake, lambda: tls.read(65536)):
                while True:
                    try:
                        step()
                        break
                    except ssl.SSLWantReadError:
                        connection.sendall(outgoing.read())
                        data = connection.recv(65536)
                        if not data:
                            return
                        incoming.write(data)
            tls.write(ANSWER)
            with contextlib.suppress(ssl.SSLError):
                tls.unwrap()
            connection.sendall(outgoing.read())

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        endpoint = Endpoint(f"https://127.0.0.1:{listener.getsockname()[1]}/v1", "x")
        result = measure(
            endpoint, {"concurrency": 1, "num_requests": 6}, None, str(certificate), max_tokens=1
        )
        listener.shutdown(socket.SHUT_RDWR)
    assert result.stats.errors == {}
    assert result.stats.num_succeeded == 6


def test_a_long_answer_over_tls_is_whole_though_it_is_read_late() -> None:
    """More than the kernel takes at once."""
    num_tokens = 40_000
    body = json.dumps(
        {"model": "known", "stream": True, "max_tokens": num_tokens, "ignore_eos": True,
         "stream_options": {"include_usage": True}, "messages": [{"role": "user", "content": "x"}]}
    ).encode()  # fmt: skip
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
    with known_server("--ttft-s", "0", "--itl-s", "0", tls=True) as server:
        url = urllib.parse.urlsplit(server.endpoint.url)
        context = ssl.create_default_context(cafile=server.ca_file)
        with socket.create_connection((url.hostname, url.port)) as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            with context.wrap_socket(plain, server_hostname=url.hostname) as connection:
                connection.sendall(request % (len(body), body))
                time.sleep(1)
                found = b""
                while not found.endswith(b"0\r\n\r\n"):
                    data = connection.recv(2**20)
                    assert data
                    found += data
    assert len(found) > 4 * 2**20
    assert found.count(b'"content"') >= num_tokens


@pytest.mark.parametrize("loop", [{"rate_rps": 100.0}, {"concurrency": 8}], ids=str)
def test_a_server_killed_mid_run_leaves_every_request_accounted_for(
    loop: dict[str, Any], start_known_server: Any
) -> None:
    options = {"scenarios": [{"name": "x", **loop, "num_requests": 250}]}
    config = LoadTestConfig.model_validate({**options, "num_warmup_requests": 0, "timeout_s": 5.0})
    (scenario,) = config.scenarios
    with start_known_server("--ttft-s", "0.05", "--itl-s", "0.01") as server:
        plan, workload = make_plan(config, scenario, server.endpoint, prompts([None]), seed=0)
        killed_after: list[int] = []

        def kill(counters: Counters) -> bool:
            if counters.num_answered > 20 and not killed_after:
                server.process.kill()
                killed_after.append(counters.num_answered)
            return False

        started_s = time.monotonic()
        result = judged(config, scenario, plan, workload, run_workers(plan, None, kill))
        assert time.monotonic() - started_s < 30
    stats = result.stats
    assert killed_after and killed_after[0] < 250, "the server was killed in the middle of the run"
    assert 20 < stats.num_succeeded < 250
    assert stats.num_offered == 250
    assert stats.num_succeeded + stats.num_failed + stats.num_unfinished == 250
    assert stats.num_failed > 20
    assert set(stats.errors) <= {"connection_refused", "connection_reset", "truncated_stream"}


def test_a_closed_loop_that_only_fails_ends_early(known: Any) -> None:
    result = measure(known.endpoint, {"concurrency": 2, "num_requests": 500}, ["500"])
    assert result.stats.errors["http_500"] < 50
    assert result.stats.num_unfinished == 500 - result.stats.errors["http_500"]
    assert result.stats.num_offered == 500


def test_a_duration_ends_a_closed_loop(known: Any) -> None:
    result = measure(known.endpoint, {"concurrency": 4, "duration_s": 1.0}, num_warmup_requests=4)
    begun = result.records.intended_s[~result.records.warmup]
    assert result.stats.num_unfinished == 0
    assert result.stats.num_succeeded > 20
    assert begun.max() - begun.min() <= 1.05
    assert result.stats.throughput.window_s == pytest.approx(1.0, abs=0.01)


def test_a_connection_that_idled_is_replaced_without_a_failure(start_known_server: Any) -> None:
    with start_known_server("--ttft-s", "0.001", "--itl-s", "0") as server:
        # Each answer ends its connection, so every next request meets a closed one.
        result = measure(server.endpoint, {"rate_rps": 20.0, "num_requests": 40}, ["close"])
    assert result.stats.num_succeeded == 40
    assert result.stats.errors == {}


def test_the_key_reaches_the_server_and_no_file_or_argument(
    start_known_server: Any, tmp_path: Any
) -> None:
    key = "sk-very-secret-0123"
    with start_known_server("--api-key", key, "--ttft-s", "0.2", "--itl-s", "0.01") as server:
        endpoint = Endpoint(server.endpoint.url, "known", key)
        config = LoadTestConfig(
            scenarios=[Scenario(name="x", concurrency=1, num_requests=2)], num_warmup_requests=0
        )
        plan, workload = make_plan(config, config.scenarios[0], endpoint, prompts([None]), seed=0)
        assert key not in json.dumps(asdict(plan))
        seen = []

        def look(_: Counters) -> bool:
            listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True)
            seen.append("loadtest.client.process" in listing.stdout)
            assert not any(
                key in line
                for line in listing.stdout.splitlines()
                if "loadtest.client.process" in line
            )
            return False

        result = judged(config, config.scenarios[0], plan, workload, run_workers(plan, key, look))
        assert result.stats.num_succeeded == 2
        assert any(seen)
        refused = judged(config, config.scenarios[0], plan, workload, run_workers(plan, "sk-other"))
    assert refused.stats.errors == {"http_401": 2}
    assert key not in repr(endpoint)


def test_a_server_that_repeats_the_key_puts_it_into_no_report(tmp_path: Path) -> None:
    class Handler(Answering):
        def do_GET(self) -> None:
            self.answer(200, b'{"data": [{"id": "m"}]}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            words = f"{self.headers['Authorization'].split()[1]} sk-another-key-0123456789"
            self.answer(500, json.dumps({"error": {"message": f"no quota for {words}"}}).encode())

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", "my-own-key")
        scenario = {"name": "x", "concurrency": 1, "num_requests": 1}
        settings = small_config(scenarios=[scenario], num_warmup_requests=0)
        artifact = run_loadtest(settings, endpoint, tmp_path / "a", prompts=prompts([None]))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    (found,) = report_of(artifact)["scenarios"]
    assert found["errors"]["http_500"]["examples"] == ["no quota for *** ***"]


@pytest.mark.parametrize("workload", [{}, {"sessions": {}}], ids=["requests", "conversations"])
def test_headers_reach_every_request_and_their_secrets_no_report(
    workload: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: set[str] = set()

    class Handler(Answering):
        def do_GET(self) -> None:
            is_known = self.headers["api-key"] == "gateway-word-7"
            paths.update([self.path] if is_known else [])
            self.answer(200 if is_known else 401, b'{"data": [{"id": "m"}]}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            words = " ".join(self.headers[one] for one in ("x-tenant", "api-key", "Authorization"))
            self.answer(500, json.dumps({"error": {"message": words}}).encode())

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    settings = small_config(
        scenarios=[{"name": "x", "concurrency": 1, "num_requests": 1}], num_warmup_requests=0,
        headers={"x-tenant": "a", "api-key": "$GATEWAY_WORD", "authorization": "$GATEWAY_LOGIN"},
        workload=workload,
    )  # fmt: skip
    monkeypatch.setenv("GATEWAY_WORD", "gateway-word-7")
    try:
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", "not-for-it")
        with pytest.raises(ConfigError, match="variable GATEWAY_LOGIN is not set"):
            run_loadtest(settings, endpoint, tmp_path / "a", prompts=prompts([None]))
        monkeypatch.setenv("GATEWAY_LOGIN", "Basic login-8")
        artifact = run_loadtest(settings, endpoint, tmp_path / "a", prompts=prompts([None]))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert paths == {"/v1/models", "/metrics"}
    (found,) = report_of(artifact)["scenarios"]
    assert found["errors"]["http_500"]["examples"] == ["a *** ***"]
    for path in artifact.path.glob("*.json"):
        assert "gateway-word-7" not in path.read_text() and "login-8" not in path.read_text()
    assert artifact.manifest.config["headers"]["api-key"] == "$GATEWAY_WORD"


def test_a_client_that_is_killed_ends_the_run_with_a_reason(known: Any) -> None:
    config = LoadTestConfig(
        scenarios=[Scenario(name="x", rate_rps=5.0, num_requests=100)], num_warmup_requests=0
    )
    plan, _ = make_plan(config, config.scenarios[0], known.endpoint, prompts([None]), seed=0)
    killed = []

    def kill(_: Counters) -> bool:
        listing = subprocess.run(
            ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True
        )
        for line in listing.stdout.splitlines():
            if "loadtest.client.process" in line:
                killed.append(int(line.split()[0]))
                os.kill(killed[-1], signal.SIGKILL)
        return False

    with pytest.raises(ServerError, match="ended with code -9") as caught:
        run_workers(plan, None, kill)
    assert len(killed) == 1
    assert "a client keeps every read until the end" in str(caught.value)


def test_rows_that_were_never_sent_are_unfinished(known: Any) -> None:
    result = measure(known.endpoint, {"concurrency": 1, "num_requests": 3})
    config = LoadTestConfig(
        scenarios=[Scenario(name="x", rate_rps=1.0, num_requests=5)], num_warmup_requests=1
    )
    plan, _ = make_plan(config, config.scenarios[0], known.endpoint, prompts([None]), seed=0)
    records = with_unsent(plan, result.records)
    assert records.index.tolist() == [0, 1, 2, 3, 4, 5]
    assert not np.isin(FAILED, records.state)
    assert np.isnan(records.sent_s[3:]).all()


def test_a_reset_that_came_with_the_last_bytes_is_noticed_at_once(known: Any) -> None:
    # The event loop reports a reset once; a read that still finds bytes then hears no more of it.
    result = measure(known.endpoint, {"rate_rps": 100.0, "num_requests": 100}, ["reset"])
    assert result.stats.errors == {"connection_reset": 100}
    assert float(np.max(result.records.end_s - result.records.intended_s)) < 5.0  # of 10 s


def test_a_client_without_files_for_its_connections_blames_itself(known: Any) -> None:
    code = f"""
import resource
from loadtest.config import LoadTestConfig
from loadtest.client.prepare import make_plan
from loadtest.measure import judged
from loadtest.client.processes import run_workers
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError

resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
config = LoadTestConfig.model_validate({{
    "scenarios": [{{"name": "x", "arrival": "burst", "num_requests": 100}}],
    "slo": {{"max_error_rate": 0.99}}, "num_warmup_requests": 0, "max_tokens": 2,
    "max_client_lag_s": 1.0,
}})
prompts = [[{{"role": "user", "content": "x"}}]]
(scenario,) = config.scenarios
plan, workload = make_plan(config, scenario, Endpoint({known.endpoint.url!r}, "known"), prompts,
                           seed=0)
result = judged(config, scenario, plan, workload, run_workers(plan, None))
print(sorted(result.stats.errors), result.stats.num_succeeded > 0, result.judgement.verdict)
print(result.judgement.problems[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "['client_exhausted'] True INVALID"
    assert "ran out of sockets or ports" in second


@pytest.mark.parametrize("held_s", [0.0, 0.2])
def test_a_server_that_drops_requests_does_not_pass(held_s: float) -> None:
    """The server answers the first request of each connection and drops the second."""

    def serve(connection: socket.socket) -> None:
        with connection:
            if connection.recv(65536):
                connection.sendall(ANSWER)
            if connection.recv(65536):
                time.sleep(held_s)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "x")
        result = measure(endpoint, {"concurrency": 1, "num_requests": 10})
        listener.shutdown(socket.SHUT_RDWR)
    assert result.stats.num_offered == 10
    if held_s:
        assert result.stats.errors["connection_reset"] == 5
        assert result.client.num_resent == 0
    else:
        assert result.stats.num_succeeded == 10
        assert result.client.num_resent == 1, "afterwards each connection has one request"
        assert not any("at most 5%" in one for one in result.judgement.problems)
