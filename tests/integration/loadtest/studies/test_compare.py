"""Comparison of two endpoints and of two reports, on the known server."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadtest.report.formats import report_text
from loadtest.run import run_loadtest
from loadtest.studies.compare import compare_endpoints, compare_reports
from tests.integration.loadtest.small import PROMPTS, Answering, config, report_of
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ArtifactError, ConfigError

pytestmark = pytest.mark.usefixtures("shared_host")


def test_a_comparison_finds_the_slower_server_and_only_that(
    known: Any, start_known_server: Any, tmp_path: Path
) -> None:
    settings = config(scenarios=[{"name": "open", "rate_rps": 60.0, "num_requests": 80}])
    with start_known_server("--ttft-s", "0.06", "--itl-s", "0.004") as slower:
        artifact = compare_endpoints(
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
    assert f"| {found['ttft_s']['num_pairs']} | slower |" in report_text(artifact, "markdown")
    # A row per run would repeat the addresses, which make the table wider than a phone.
    for server in (known, slower):
        assert report_text(artifact, "markdown").count(server.endpoint.url) == 1
    shown = f"{found['ttft_s']['difference'] * 1e3:+.2f} ms"
    assert shown in report_text(artifact, "html")
    assert digests[:2] == digests[2:]
    same = compare_endpoints(
        settings, known.endpoint, known.endpoint, tmp_path / "d", prompts=PROMPTS, num_rounds=2,
        margin=0.5,
    )  # fmt: skip
    assert report_of(same)["verdict"] in ("PASS", "INCONCLUSIVE")


def test_answers_of_other_lengths_are_not_compared(known: Any, tmp_path: Path) -> None:
    settings = config(
        scenarios=[{"name": "x", "concurrency": 4, "num_requests": 60}],
        workload={"source": "synthetic", "input_tokens": {"mean": 9}, "max_token_id": 300},
    )
    with recording() as (short, _):
        artifact = compare_endpoints(
            settings, known.endpoint, short, tmp_path / "c", prompts=[], num_rounds=1
        )
    report = report_of(artifact)
    assert report["scenarios"][0]["answer_tokens"] == [8.0, 1.0]
    assert report["verdict"] != "PASS"
    assert any("have 8 tokens on A and 1 on B" in problem for problem in report["problems"])


def test_answers_without_usage_may_be_of_other_work(known: Any, tmp_path: Path) -> None:
    settings = config(scenarios=[{"name": "x", "rate_rps": 80.0, "num_requests": 60}])
    silent = [[{"role": "user", "content": "fault:no-usage"}]]
    artifact = compare_endpoints(
        settings, known.endpoint, known.endpoint, tmp_path / "c", prompts=silent, num_rounds=1,
        margin=5.0,
    )  # fmt: skip
    report = report_of(artifact)
    assert report["verdict"] == "INCONCLUSIVE"
    assert any("the answers carry no usage" in problem for problem in report["problems"])


def test_too_few_pairs_say_how_many_it_takes(known: Any, tmp_path: Path) -> None:
    settings = config(scenarios=[{"name": "x", "concurrency": 8, "num_requests": 16}])
    artifact = compare_endpoints(
        settings, known.endpoint, known.endpoint, tmp_path / "c", prompts=PROMPTS, num_rounds=1
    )
    report = report_of(artifact)
    assert report["verdict"] == "INCONCLUSIVE", report["problems"]
    needed = report["scenarios"][0]["differences"][0]["num_needed"]
    assert needed > 16
    assert any(f"needs at least {needed} pairs" in problem for problem in report["problems"])
    a = run_loadtest(settings, known.endpoint, tmp_path / "r", prompts=PROMPTS)
    for margin in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="margin"):
            compare_reports(a.path, a.path, tmp_path / "d", margin=margin)


@contextlib.contextmanager
def recording() -> Iterator[tuple[Endpoint, list[list[int]]]]:
    """A server that answers each completion with one token and keeps the prompt."""
    prompts: list[list[int]] = []

    class Handler(Answering):
        def do_GET(self) -> None:
            found = self.path == "/v1/models"
            self.answer(200 if found else 404, b'{"data": [{"id": "known"}]}')

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            prompts.append(json.loads(body)["prompt"])
            usage = b'"usage": {"prompt_tokens": 9, "completion_tokens": 1}'
            event = b'data: {"choices": [{"text": "a", "finish_reason": "stop"}], ' + usage
            self.answer(200, event + b"}\n\ndata: [DONE]\n\n")

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
        compare_endpoints(settings, a, b, tmp_path / "c", prompts=[], num_rounds=2)
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
    artifact = compare_endpoints(
        config(), known.endpoint, known.endpoint, tmp_path / "c", prompts=failing, num_rounds=1
    )
    report = report_of(artifact)
    assert report["verdict"] == "INVALID"
    assert "no request succeeded on both sides" in report["problems"][0]


def test_conversations_are_compared_as_conversations(
    known: Any, start_known_server: Any, tmp_path: Path
) -> None:
    talk = [
        {"role": role, "content": f"{role} {number}"}
        for number in range(3)
        for role in ("user", "assistant")
    ][:-1]
    settings = config(
        scenarios=[{"name": "x", "concurrency": 4, "num_requests": 60}],
        workload={"sessions": {"think_s": {"mean": 0.0}}},
    )
    with start_known_server("--ttft-s", "0.05", "--itl-s", "0.004") as slower:
        artifact = compare_endpoints(
            settings, known.endpoint, slower.endpoint, tmp_path / "c", prompts=[talk],
            num_rounds=2,
        )  # fmt: skip
    report = report_of(artifact)
    assert report["verdict"] == "FAIL", report["problems"]
    found = {one["metric"]: one for one in report["scenarios"][0]["differences"]}
    assert (found["ttft_s"]["num_pairs"], found["ttft_s"]["num_conversations"]) == (360, 120)
    assert found["session_wait_s"]["num_pairs"] == found["session_wait_s"]["num_conversations"]
    assert found["session_wait_s"]["num_pairs"] == 120
    assert found["ttft_s"]["difference"] == pytest.approx(0.02, abs=0.01)
    assert found["session_wait_s"]["difference"] == pytest.approx(0.06, abs=0.03)
    same = compare_endpoints(
        settings, known.endpoint, known.endpoint, tmp_path / "d", prompts=[talk], num_rounds=2,
        margin=0.5,
    )  # fmt: skip
    assert report_of(same)["verdict"] == "PASS", report_of(same)["problems"]
