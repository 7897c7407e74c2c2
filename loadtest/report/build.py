"""`report.json`: what a load test found, as a document. docs/loadtest.md describes every key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from loadtest.calibration.calibrate import Calibration
from loadtest.client.plan import SUCCEEDED, Records
from loadtest.client.probe import Served
from loadtest.config import LoadTestConfig, Scenario
from loadtest.judging.statistics import Statistics, figure, latency_values
from loadtest.judging.verdict import Judgement, worst
from tuneline.core.artifact import Input
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import environment_facts

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Result:
    """One scenario, measured and judged."""

    scenario: Scenario
    records: Records
    stats: Statistics
    client: dict[str, Any]
    judgement: Judgement
    plan_digest: str
    """Equal for runs that ask the same at the same times."""
    models: list[str]
    """The served name that each row of `records` asked."""
    calibration: Calibration | None
    server: dict[str, Any] | None
    """The server's own figures over the same window, reconciled; None where it shows none."""
    examples: dict[str, list[str]]
    text_sample: list[str]
    start_unix_s: float


def report_document(
    config: LoadTestConfig,
    endpoint: Endpoint,
    served: Served,
    inputs: Sequence[Input],
    results: Sequence[Result],
) -> dict[str, Any]:
    """The whole report."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": worst([result.judgement.verdict for result in results]),
        "problems": [
            f"{result.scenario.name}: {problem}"
            for result in results
            for problem in result.judgement.problems
        ],
        "endpoint": endpoint_document(endpoint, served),
        "inputs": [entry.model_dump() for entry in inputs],
        "workload": {
            **config.workload.model_dump(mode="json", exclude_none=True),
            "max_tokens": config.max_tokens,
            "ignore_eos": config.ignore_eos,
            "extra_body": config.extra_body,
            "seed": config.seed,
        },
        "scenarios": [scenario_document(config, result) for result in results],
        "environment": environment_facts(),
    }


def endpoint_document(endpoint: Endpoint, served: Served) -> dict[str, Any]:
    return {
        "url": endpoint.url,
        "model": endpoint.model,
        "served_names": served.names,
        "artifact_name": served.artifact_name,
        "artifact_short_digest": served.short_digest,
        "server": served.server,
    }


def scenario_document(config: LoadTestConfig, result: Result) -> dict[str, Any]:
    stats = result.stats
    return {
        "name": result.scenario.name,
        "verdict": result.judgement.verdict,
        "problems": result.judgement.problems,
        "warnings": result.judgement.warnings,
        "config": result.scenario.model_dump(mode="json", exclude_none=True),
        "plan_digest": result.plan_digest,
        "slo": (result.scenario.slo or config.slo).model_dump(mode="json", exclude_none=True),
        "objectives": plain(result.judgement.objectives),
        "within": plain(stats.within),
        "start_unix_s": result.start_unix_s,
        "requests": {
            "offered": stats.num_offered,
            "succeeded": stats.num_succeeded,
            "failed": stats.num_failed,
            "unfinished": stats.num_unfinished,
            "warmup": stats.num_warmup,
            "error_rate": stats.failed.value,
            "error_rate_ci95": stats.failed.ci95,
        },
        "errors": {
            name: {"count": count, "examples": result.examples.get(name, [])}
            for name, count in stats.errors.items()
        },
        "retry_after_s": stats.retry_after_s,
        "latency": plain(stats.latencies),
        "throughput": {
            **plain(stats.throughput),
            "goodput_share": stats.good.value if stats.good else None,
            "goodput_share_ci95": stats.good.ci95 if stats.good else None,
        },
        "tokens": plain(stats.tokens),
        "arrivals": {
            "scheduled": plain(stats.arrivals_scheduled),
            "delivered": plain(stats.arrivals_delivered),
        },
        "mean_in_flight": stats.mean_in_flight,
        "steady_state": plain(stats.steady_state),
        "models": per_model(result),
        "client": {**plain(result.client), "send_lag_s": plain(stats.send_lag)},
        "calibration": plain(result.calibration),
        "server": result.server,
        "text_sample": result.text_sample,
    }


def per_model(result: Result) -> dict[str, Any] | None:
    """Figures of each served name in a mix of adapters; None for a single one."""
    import numpy as np

    names = sorted(set(result.models))
    if len(names) < 2:
        return None
    asked = np.array(result.models)
    found = {}
    for name in names:
        rows = result.records.select((asked == name) & ~result.records.warmup)
        values = latency_values(rows)
        found[name] = {
            "offered": len(rows),
            "succeeded": int(np.sum(rows.state == SUCCEEDED)),
            **{metric: plain(figure(values[metric])) for metric in ("ttft_s", "tpot_s", "e2e_s")},
        }
    return found


def plain(value: Any) -> Any:
    """Dataclasses as JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def summary_metrics(document: dict[str, Any]) -> dict[str, Any]:
    """What the manifest keeps of the report."""
    return {
        "verdict": document["verdict"],
        "problems": document["problems"],
        "scenarios": {
            scenario["name"]: {
                "num_succeeded": scenario["requests"]["succeeded"],
                "num_offered": scenario["requests"]["offered"],
                "ttft_p50_s": scenario["latency"]["ttft_s"]["p50"],
                "ttft_p90_s": scenario["latency"]["ttft_s"]["p90"],
                "tpot_p50_s": scenario["latency"]["tpot_s"]["p50"],
                "e2e_p90_s": scenario["latency"]["e2e_s"]["p90"],
                "output_tokens_per_s": scenario["throughput"]["output_tokens_per_s"],
            }
            for scenario in document["scenarios"]
        },
    }
