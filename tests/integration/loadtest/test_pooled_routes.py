"""The routes for vectors and scores against the server of known delays."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from loadtest import report_text, run_loadtest
from loadtest.client.prepare import make_plan
from loadtest.client.processes import run_workers
from loadtest.config import DEFAULT_MAX_TOKENS
from loadtest.measure import judged
from loadtest.studies.compare import compare_endpoints
from tests.integration.loadtest.small import config, report_of
from tuneline.core.artifact import open_artifact
from tuneline.core.verdict import Verdict

pytestmark = pytest.mark.usefixtures("shared_host")

ROUTES = ("embeddings", "pooling", "classify", "score", "rerank")
FAULTS = {
    "500": "http_500", "stall": "timeout", "reset": "connection_reset", "cut": "truncated_stream",
    "invalid-sse": "malformed_answer", "error-event": "error_event", "empty": "malformed_answer",
    "few": "malformed_answer", "not-stream": "malformed_answer", "length": None, "close": None,
    "no-usage": None,
}  # fmt: skip


def asked(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


def run(known: Any, prompts: list[Any], **options: Any) -> Any:
    settings = config(
        num_warmup_requests=0, max_tokens=DEFAULT_MAX_TOKENS, timeout_s=2.0, **options
    )
    scenario = settings.scenarios[0]
    plan, workload = make_plan(settings, scenario, known.endpoint, prompts, seed=0)
    return judged(settings, scenario, plan, workload, run_workers(plan, None))


@pytest.mark.parametrize("route", ROUTES)
def test_the_time_of_a_document_is_the_servers(known: Any, route: str) -> None:
    before = len(known.truths())
    result = run(
        known, [asked("q", "a", "b"), asked("p", "c")], workload={"route": route},
        slo={"e2e_s": {"p50": 1.0}},
    )  # fmt: skip
    records, stats = result.records, result.stats
    assert stats.num_succeeded == 60, stats.errors
    assert result.judgement.verdict is Verdict.PASS, result.judgement.problems
    truths = sorted(known.truths()[before:], key=lambda one: int(one["request_id"]))
    true_s = [(one["token_write_ns"][0] - one["received_ns"]) / 1e9 for one in truths]
    assert len(true_s) == 60
    assert abs(np.median(records.last_token_s - records.sent_s - true_s)) < 0.003
    assert (records.prompt_tokens == 7).all()
    assert (records.tokens == 0).all()
    assert stats.latencies["tpot_s"].n == 0


def test_faults_of_a_document_have_their_classes(known: Any) -> None:
    result = run(
        known, [asked("q", "a", f"fault:{name}") for name in FAULTS], workload={"route": "rerank"},
        scenarios=[{"name": "x", "concurrency": 4, "num_requests": len(FAULTS)}],
    )  # fmt: skip
    found = sorted(name for name, count in result.stats.errors.items() for _ in range(count))
    assert found == sorted(error for error in FAULTS.values() if error)
    assert result.judgement.verdict is Verdict.FAIL


def test_openais_client_sends_the_same_body_and_reads_the_same_vector(known: Any) -> None:
    settings = config(
        workload={"route": "embeddings"}, num_warmup_requests=0, max_tokens=DEFAULT_MAX_TOKENS
    )
    plan, _ = make_plan(settings, settings.scenarios[0], known.endpoint, [asked("a text")], seed=0)
    body = json.loads(plan.bodies[0])
    assert body == {"model": "known", "input": "a text"}
    client = openai.OpenAI(base_url=known.endpoint.url, api_key="none")
    (vector,) = client.embeddings.create(**body, encoding_format="float").data
    assert vector.embedding == [0.5, 0.0, 1.0]


def test_a_rerank_load_test_of_a_file_has_a_page_without_token_figures(
    known: Any, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"query": "q", "documents": ["a", "b"]}) + "\n")
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "tuneline", "loadtest", "--url", known.endpoint.url,
        "--model", "known", "--rate", "40", "--requests", "40", "--prompts", str(pairs),
        "--out", str(out), "--set", "loadtest.workload.route=rerank",
        "--set", "loadtest.calibrate=false", "--set", "loadtest.max_client_lag_s=1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "40 of 40 requests succeeded" in done.stdout + done.stderr, done.stderr
    assert "prompt tokens/s" in done.stderr + done.stdout
    assert "TTFT" not in done.stderr.partition("client:")[0]
    artifact = open_artifact(out)
    (scenario,) = report_of(artifact)["scenarios"]
    assert scenario["tokens"]["num_prompt_tokens"] == 7 * 40
    page = report_text(artifact, "html")
    assert "prompts, to the route rerank" in page
    assert "Time to first token" not in page


def test_no_form_of_a_report_of_vectors_has_a_first_token(known: Any, tmp_path: Path) -> None:
    settings = config(
        workload={"route": "embeddings", "models": {"known": 1, "known@0123456789ab": 1}},
        max_tokens=DEFAULT_MAX_TOKENS,
    )  # fmt: skip
    artifact = run_loadtest(settings, known.endpoint, tmp_path / "a", prompts=[asked("a text")])
    (scenario,) = report_of(artifact)["scenarios"]
    assert scenario["requests"]["succeeded"] == 60
    assert sorted(scenario["latency"]) == ["e2e_from_sent_s", "e2e_s"]
    assert set(scenario["over_time"]["ttft_p50_s"]) == {None}
    assert sum(one["succeeded"] for one in scenario["models"].values()) == 60
    assert all(one["ttft_s"] is None for one in scenario["models"].values())
    files = {path.name for path in artifact.path.iterdir()}
    assert "e2e_over_time.png" in files and "ttft_over_time.png" not in files
    for form in ("prometheus", "otlp", "vllm"):
        text = report_text(artifact, form)
        assert "e2e" in text and "ttft" not in text and "tpot" not in text, form
        assert "output_token_rate" not in text and "output_tokens_per_second" not in text
    (p50,) = re.findall(r'e2e_seconds{.*quantile="0.50"} (.*)', report_text(artifact, "prometheus"))
    assert float(p50) == pytest.approx(scenario["latency"]["e2e_s"]["percentiles"]["p50"])


def test_a_report_of_vectors_without_a_good_answer_has_every_form(
    known: Any, tmp_path: Path
) -> None:
    settings = config(
        workload={"route": "embeddings"}, max_tokens=DEFAULT_MAX_TOKENS, num_warmup_requests=0,
        scenarios=[{"name": "x", "concurrency": 2, "num_requests": 4}],
    )  # fmt: skip
    prompts = [asked("fault:500")]
    artifact = run_loadtest(settings, known.endpoint, tmp_path / "a", prompts=prompts)
    for form in ("table", "html", "markdown", "csv", "vllm", "prometheus", "otlp"):
        assert report_text(artifact, form), form
    assert "TTFT" not in report_text(artifact, "table")


def test_a_comparison_of_vectors_is_of_their_times_and_of_no_tokens(
    known: Any, start_known_server: Any, tmp_path: Path
) -> None:
    settings = config(
        workload={"route": "embeddings"}, max_tokens=DEFAULT_MAX_TOKENS, num_warmup_requests=0,
        scenarios=[{"name": "open", "rate_rps": 60.0, "num_requests": 80}],
    )  # fmt: skip
    with start_known_server("--ttft-s", "0.06") as slower:
        artifact = compare_endpoints(
            settings, known.endpoint, slower.endpoint, tmp_path / "c", num_rounds=1,
            prompts=[asked("one"), asked("two")],
        )  # fmt: skip
    report = report_of(artifact)
    (found,) = report["scenarios"][0]["differences"]
    assert (found["metric"], found["num_pairs"], found["verdict"]) == ("e2e_s", 80, "slower")
    assert report["verdict"] == "FAIL", report["problems"]
    for form in ("markdown", "html"):
        assert "ttft" not in report_text(artifact, form), form
