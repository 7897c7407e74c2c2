"""A model behind real vLLM, asked with the real openai client."""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtest import run_loadtest
from loadtest.config import LoadTestConfig
from loadtest.judging import validity
from loadtest.judging.server_metrics import COUNTERS, HISTOGRAMS, scrape
from serving.chat import answers, converse
from serving.config import ServedParityConfig
from serving.parity import prove_served
from serving.supervisor.group import group_members
from serving.supervisor.process import RunningServer
from tests.e2e.serving.conftest import Traces
from tuneline.core.artifact import Artifact
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError
from tuneline.core.vllm_metrics import TUNELINE_METRICS, VLLM_METRICS
from tuneline.models.source import ModelSource

CLOSED = [
    ("POST", "/invocations"), ("POST", "/adapters"), ("POST", "/v1/load_lora_adapter"),
    ("POST", "/tokenize"), ("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/v1/embeddings"),
    ("GET", "/load"), ("POST", "/inference/v1/generate"), ("GET", "/ping"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _ends_the_server(until_its_last_test: ExitStack) -> Iterator[None]:
    """One worker runs test_clients.py, then this file; nothing asks the server after it."""
    yield
    until_its_last_test.close()


def test_both_names_are_served(
    client: openai.OpenAI, merged_server: RunningServer, base: ModelSource
) -> None:
    digest = base.digest.removeprefix("sha256:")
    names = ["tickets", f"tickets@{digest[:12]}"]
    assert [model.id for model in client.models.list()] == merged_server.served_names == names


def test_it_streams_what_it_answers_whole(
    client: openai.OpenAI, merged_server: RunningServer, questions: dict[str, str]
) -> None:
    question, answer = next(iter(questions.items()))
    messages = [{"role": "user", "content": question}]
    whole = client.chat.completions.create(
        model=merged_server.served_names[1], messages=messages, temperature=0  # type: ignore[arg-type]
    )  # fmt: skip
    assert whole.choices[0].message.content == answer
    assert whole.choices[0].finish_reason == "stop"
    greedily = answers(merged_server.endpoint, {"temperature": 0})
    assert "".join(greedily(messages)) == answer


def test_a_conversation(merged_server: RunningServer, questions: dict[str, str]) -> None:
    first, second = list(questions)[:2]
    lines = iter([first, "", "/new", second, "/exit", "never read"])
    written: list[str] = []
    talk = answers(merged_server.endpoint, {"temperature": 0})
    assert converse(talk, read=lambda _: next(lines), write=written.append) == 2
    assert "".join(written) == f"{questions[first]}\n{questions[second]}\n"


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_other_routes_are_closed(merged_server: RunningServer, method: str, path: str) -> None:
    body = {"model": "tickets", "messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    status, answer = call(merged_server, method, path, body)
    assert status == 404
    assert answer["error"]["type"] == "NotFoundError"


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/v1/models"])
def test_listed_routes_are_open(merged_server: RunningServer, path: str) -> None:
    assert call(merged_server, "GET", path)[0] == 200


def test_a_name_that_is_not_served_is_said(merged_server: RunningServer) -> None:
    endpoint = Endpoint(merged_server.endpoint.url, "other")
    with pytest.raises(ServerError, match=r"'other'.*does not exist"):
        next(answers(endpoint)([{"role": "user", "content": "Hello"}]))


def test_every_metric_that_is_relied_on_is_there(
    merged_server: RunningServer, base: ModelSource, client: openai.OpenAI
) -> None:
    client.completions.create(model="tickets", prompt="Category", max_tokens=4)
    with urlopen(merged_server.metrics_url) as page:  # noqa: S310 (http, our own server)
        families = list(text_string_to_metric_families(page.read().decode()))
    # The parser takes `_total` off a counter's name.
    types = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in families
    }
    expected = {**VLLM_METRICS, **TUNELINE_METRICS}
    assert len(expected) > 20
    assert {name: types.get(name) for name in expected} == expected

    read = scrape(merged_server.endpoint)
    assert read is not None
    histograms = [f"{name}_{part}" for name in HISTOGRAMS.values() for part in ("sum", "count")]
    load_test_reads = {*COUNTERS.values(), *histograms}
    assert len(load_test_reads) >= 14
    assert load_test_reads <= read.values.keys()

    samples = {family.name: family.samples for family in families}
    info = samples["tuneline_artifact_info"]
    assert [(sample.labels, sample.value) for sample in info] == [
        ({"name": "tickets", "kind": "base-model", "digest": base.digest}, 1.0)
    ]
    ready_s = samples["tuneline_ready_seconds"][0].value
    assert 0 < ready_s <= merged_server.ready_s + 0.1
    assert samples["tuneline_restarts"][0].value == 0


def test_the_served_model_is_the_trained_one(
    merged_server: RunningServer, base: ModelSource, reference: Artifact, tmp_path: Path
) -> None:
    parity = prove_served(
        ServedParityConfig(), reference, merged_server.endpoint, tmp_path / "parity",
        inputs=[base.as_input("model")],
    )  # fmt: skip
    metrics = parity.manifest.metrics
    assert metrics["num_prompts"] == 8
    assert metrics["problems"] == []
    assert metrics["verdict"] == "PASS"
    assert metrics["num_equal_answers"] == metrics["num_prompts_with_equal_ids"] == 8
    assert metrics["num_agreeing_tokens"] == metrics["num_tokens"] > 80
    # float32 on both sides: what is left is the order of summation.
    assert 0 < metrics["max_logprob_difference"] < 1e-3
    assert metrics["mean_kl"] < 1e-6
    assert [entry.role for entry in parity.manifest.inputs] == ["reference", "model"]
    assert json.loads((parity.path / "parity.json").read_text()) == metrics


def test_another_model_fails_with_its_first_divergences(
    merged_server: RunningServer, adapter_reference: Artifact, tmp_path: Path
) -> None:
    parity = prove_served(
        ServedParityConfig(concurrency=4), adapter_reference, merged_server.endpoint,
        tmp_path / "parity",
    )  # fmt: skip
    metrics = parity.manifest.metrics
    assert metrics["verdict"] == "FAIL"
    assert metrics["num_prompts_with_equal_ids"] == 8
    assert metrics["num_equal_answers"] == 0
    assert len(metrics["first_divergences"]) == 8
    assert any("greedy_agreement is 0.0000" in problem for problem in metrics["problems"])


def test_the_server_is_a_group_of_its_own(merged_server: RunningServer) -> None:
    assert merged_server.pid in group_members(merged_server.pid)
    assert len(group_members(merged_server.pid)) >= 2  # the HTTP server and its engine


def test_a_server_that_waits_uses_no_cpu(
    merged_server: RunningServer, questions: dict[str, str]
) -> None:
    # vLLM's engine and its worker would loop for a second after the last message between them.
    question = {"role": "user", "content": next(iter(questions))}
    "".join(answers(merged_server.endpoint, {"temperature": 0, "max_tokens": 4})([question]))
    before_s = cpu_s(merged_server.pid)
    time.sleep(0.9)  # the time in which they would loop
    used_s = cpu_s(merged_server.pid) - before_s
    print(f"CPU time of a server that waits: {used_s:.2f} s in 0.9 s")
    assert used_s < 0.25


def cpu_s(group: int) -> float:
    """Return the CPU time of a group so far: fields 14 and 15 of /proc/ID/stat."""
    ticks = 0
    for process in group_members(group):
        stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(stat[11]) + int(stat[12])
    assert ticks > 0
    return ticks / os.sysconf("SC_CLK_TCK")


def call(
    server: RunningServer, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[int, Any]:
    address = urlsplit(server.metrics_url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    try:
        connection.request(
            method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    return response.status, json.loads(text) if text else None


@pytest.mark.parametrize("has_sessions", [False, True])
def test_answers_under_load_are_the_references(
    merged_server: RunningServer, reference: Artifact, questions: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, has_sessions: bool,
) -> None:  # fmt: skip
    """Sixteen streams share batches with the reference's prompts, and some clients leave."""
    monkeypatch.setattr(validity, "MAX_STEAL_SHARE", 1.0)
    monkeypatch.setattr(validity, "MAX_THROTTLED_SHARE", 1.0)
    talks = [
        [
            {"role": "user", "content": first}, {"role": "assistant", "content": answer},
            {"role": "user", "content": second},
        ]
        for (first, answer), second in zip(questions.items(), reversed(questions), strict=True)
    ]  # fmt: skip
    config = LoadTestConfig.model_validate(
        {
            "scenarios": [{"name": "x", "concurrency": 16, "num_requests": 64}],
            "calibrate": False, "max_client_lag_s": 5.0, "max_tokens": 24, "timeout_s": 120.0,
            "answers": {"share": 0.4, "dtype": "float32"},
            "cancellations": {"share": 0.1, "after_tokens": 2},
            "workload": {"sessions": {"think_s": {"mean": 0.01}}} if has_sessions else {},
        }
    )  # fmt: skip
    endpoint = merged_server.endpoint
    report = run_loadtest(config, endpoint, tmp_path / "r", prompts=talks, reference=reference)
    (scenario,) = json.loads((report.path / "report.json").read_text())["scenarios"]
    found, left = scenario["answers"], scenario["cancellations"]
    assert scenario["verdict"] == "PASS", scenario["problems"]
    assert found["num_compared"] == found["num_equal"] > 15
    assert found["compared"] == "token ids" and found["token_agreement"] == 1.0
    assert 0 <= found["max_logprob_difference"] < 1e-3
    assert left["num_left"] > 0 and left["num_running_after"] == 0
    assert (scenario["sessions"] is not None) == has_sessions
    if has_sessions:
        assert scenario["sessions"]["prefix_reuse"] > 0.1


def test_a_trace_has_the_id_of_the_request_and_the_client_s_trace(
    merged_server: RunningServer, traces: Traces
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-Id": "order-17", "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    client = openai.OpenAI(base_url=merged_server.endpoint.url, api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model="tickets", messages=[{"role": "user", "content": "Hello"}], max_tokens=4,
        extra_headers=headers,
    )  # fmt: skip
    assert answer.usage is not None
    deadline_s = time.monotonic() + 60  # the exporter sends every five seconds
    # JSON of protobuf has bytes in base64, and numbers of 64 bits as text.
    sent_id = base64.b64encode(bytes.fromhex(trace_id)).decode()
    while not (found := [span for span in traces.spans() if span["trace_id"] == sent_id]):
        assert time.monotonic() < deadline_s, [span["name"] for span in traces.spans()]
        time.sleep(0.1)  # polls; nothing is timed by it
    facts = {entry["key"]: entry["value"] for span in found for entry in span["attributes"]}
    assert "order-17" in facts["gen_ai.request.id"]["string_value"]
    num_tokens = int(facts["gen_ai.usage.completion_tokens"]["int_value"])
    assert num_tokens == answer.usage.completion_tokens
