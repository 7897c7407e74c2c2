"""A load report with the keys of `vllm bench serve --save-result`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.client.records import SUCCEEDED, Records
from loadtest.config import Scenario
from loadtest.judging.latency import gaps_s
from loadtest.report.files import records_of, report_of
from loadtest.report.schema import LoadReport, ScenarioReport
from loadtest.report.terminal import has_tokens
from loadtest.workload_config import POOLED, TOKEN_IDS, WorkloadConfig
from tuneline.core.artifact import Artifact

BACKENDS = {
    "chat": "openai-chat", "completions": "openai", "responses": "openai-responses",
    "embeddings": "openai-embeddings", "pooling": "vllm-pooling", "rerank": "vllm-rerank",
}  # fmt: skip
"""vLLM's names of routes. It has none for the others, which keep ours."""


def vllm_documents(artifact: Artifact) -> list[dict[str, Any]]:
    """Return per scenario the keys that `vllm bench serve --save-result` writes.

    The definitions are those of vLLM's bench and differ from this report's: failed requests are
    left out, latencies count from the sent time, rates are over the whole run, and TPOT divides by
    N - 1. The percentile is always p99, as that tool's default is.
    """
    report = report_of(artifact)
    return [
        _scenario(report, report.scenario(name), records)
        for name, records in records_of(artifact, report)
    ]


def _scenario(report: LoadReport, scenario: ScenarioReport, records: Records) -> dict[str, Any]:
    measured = records.select(~records.warmup)
    ok = measured.select(measured.state == SUCCEEDED)
    config = scenario.config
    ends, begins = (one[~np.isnan(one)] for one in (measured.end_s, measured.sent_s))
    # Without a request that was sent there is no duration, and no rate.
    duration_s = float(ends.max() - begins.min()) if len(ends) and len(begins) else 0.0
    per_second = 1 / duration_s if duration_s > 0 else 0.0
    num_in, num_out = int(np.nansum(ok.prompt_tokens)), int(np.nansum(ok.tokens))
    e2e = ok.last_token_s - ok.sent_s
    ttft = ok.first_token_s - ok.sent_s
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(ok.tokens > 1, (e2e - ttft) / (ok.tokens - 1), np.nan)
    values = {"ttft": ttft, "tpot": tpot[~np.isnan(tpot)], "itl": gaps_s(ok), "e2el": e2e}
    if not has_tokens(scenario):
        values = {"e2el": e2e}
    return {
        "date": datetime.fromtimestamp(scenario.start_unix_s, UTC).strftime("%Y%m%d-%H%M%S"),
        "backend": backend_of(report.workload),
        "endpoint_type": backend_of(report.workload),
        "label": scenario.name,
        "model_id": report.endpoint.model,
        "tokenizer_id": None,
        "num_prompts": len(measured),
        "request_rate": request_rate(
            config, scenario.throughput.offered_rps, of_conversations=scenario.sessions is not None
        ),
        "burstiness": 1.0 if config.burstiness is None else config.burstiness,
        "max_concurrency": config.concurrency,
        "duration": duration_s,
        "completed": len(ok),
        "failed": len(measured) - len(ok),
        "total_input_tokens": num_in,
        "total_output_tokens": num_out,
        "request_throughput": len(ok) * per_second,
        "output_throughput": num_out * per_second,
        "total_token_throughput": (num_in + num_out) * per_second,
        **{
            f"{statistic}_{metric}_ms": value
            for metric, seconds in values.items()
            for statistic, value in _statistics(seconds).items()
        },
    }


def backend_of(workload: WorkloadConfig) -> str:
    """Return vLLM's name of the route that a workload asks."""
    of_ids = workload.source in TOKEN_IDS and workload.route not in POOLED
    route = "completions" if of_ids else workload.route
    return BACKENDS.get(route, route)


def request_rate(
    config: Scenario, offered_rps: float | None, *, of_conversations: bool
) -> float | str:
    """Return the requests per second as vLLM's benchmark has them: `inf` for a closed loop or a
    burst, and the offered rate where `rate_rps` does not say it."""
    if config.concurrency is not None or config.arrival == "burst":
        return "inf"
    if config.rate_rps is None or config.arrival == "ramp" or of_conversations:
        return "inf" if offered_rps is None else offered_rps
    return config.rate_rps


def _statistics(seconds: NDArray[np.float64]) -> dict[str, float]:
    if not len(seconds):
        seconds = np.zeros(1)
    return {
        "mean": float(np.mean(seconds)) * 1e3,
        "median": float(np.median(seconds)) * 1e3,
        "std": float(np.std(seconds)) * 1e3,
        "p99": float(np.percentile(seconds, 99)) * 1e3,
    }
