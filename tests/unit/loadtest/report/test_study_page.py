"""The page of a search whose figures are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadtest.config import SLO
from loadtest.report.formats import report_text
from loadtest.report.schema import EndpointReport
from loadtest.studies.schema import Knee, Probe, SearchReport
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.verdict import Verdict

ENDPOINT = EndpointReport(
    url="http://h:1/v1", model="m", served_names=["m"], artifact_name=None,
    artifact_short_digest=None, server=None,
)  # fmt: skip
CONFIG: dict[str, Any] = {
    "slo": {"ttft_s": {"p50": 0.5}, "tpot_s": {}, "max_error_rate": 0.0, "goodput_e2e_s": None},
    "workload": {"source": "sharegpt", "sessions": {"history": "recorded"}},
    "max_tokens": 16,
}


def probe(streams: int) -> Probe:
    return Probe(
        rate_rps=None, concurrency=streams, verdict=Verdict.PASS, stopped_early=False,
        num_requests=70, latency={"ttft_s": {"p90": 0.05}, "e2e_s": {"p90": 0.2}},
        output_tokens_per_s=100.0 * streams, error_rate=0.0, problems=[],
    )  # fmt: skip


def searched(tmp_path: Path, **values: Any) -> Artifact:
    found: dict[str, Any] = {
        "verdict": Verdict.PASS, "max_concurrency": 16, "highest_passed_concurrency": 16,
        "probes": [probe(4), probe(16)], **values,
    }  # fmt: skip
    report = SearchReport(
        schema_version=5, problems=[], endpoint=ENDPOINT, inputs=[], slo=SLO(), axis="concurrency",
        max_rate_rps=None, lowest_failing_rate_rps=None, highest_passed_rps=None,
        knee=Knee(concurrency=16, low=4, high=None, mean_e2e_s=0.2, output_tokens_per_s=1600.0),
        confirmed=True, num_confirmations=1, interval_confidence=0.95, precision=None,
        limited_by="max_concurrency", capacity=None, environment={}, **found,
    )  # fmt: skip
    with new_artifact(tmp_path / "search", "load-search", config=CONFIG) as draft:
        (draft.dir / "report.json").write_text(report.model_dump_json())
        draft.metrics["verdict"] = str(report.verdict)
    return open_artifact(tmp_path / "search")


def test_the_page_of_a_search_over_vectors_has_requests_per_second(tmp_path: Path) -> None:
    of_vectors = {"output_tokens_per_s": 0.0, "succeeded_rps": 321.0}
    probes = [probe(streams).model_copy(update=of_vectors) for streams in (4, 16)]
    page = report_text(searched(tmp_path, probes=probes), "markdown")
    assert "| 4 | PASS | 70 | 200 ms | 321 |" in page
    assert "TTFT" not in page and "output tokens/s" not in page


def test_the_page_of_a_search_says_what_was_measured(tmp_path: Path) -> None:
    page = report_text(searched(tmp_path), "markdown")
    assert "2 probes from 4 to 16 streams, 140 requests." in page
    assert "| 4 | PASS | 70 |" in page and "| 16 | PASS | 70 |" in page
    assert "4 streams or more; no larger number was measured" in page
    assert "sharegpt, conversations, at most 16 tokens per answer" in page
    assert "ttft_s.p50 500 ms, max_error_rate 0" in page.replace("\\", "")
    assert "http://h:1/v1" in page


@pytest.mark.parametrize(
    ("found", "label"),
    [(16, "highest that holds"), (None, "highest that passed, not confirmed")],
)
def test_the_highest_load_says_whether_it_is_confirmed(
    found: int | None, label: str, tmp_path: Path
) -> None:
    artifact = searched(tmp_path, max_concurrency=found)
    page = report_text(artifact, "html")
    assert label in page
    assert ">16<" in "".join(page.split())
