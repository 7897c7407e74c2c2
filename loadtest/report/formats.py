"""A load report in the forms that other tools read: CSV, `vllm bench serve`, Prometheus."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.client.plan import SUCCEEDED, Records
from loadtest.judging.statistics import gaps_s
from tuneline.core.artifact import Artifact

STATES = ("succeeded", "failed", "unfinished")


def csv_text(report: Artifact) -> str:
    """One line per request of every scenario; times in seconds from the scenario's start."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    columns = (
        "index", "warmup", "state", "error", "intended_s", "sent_s", "first_byte_s",
        "first_token_s", "last_token_s", "end_s", "tokens", "prompt_tokens",
    )  # fmt: skip
    writer.writerow(("scenario", *columns))
    for name, records in _records(report):
        values = [getattr(records, column) for column in columns]
        for row in range(len(records)):
            cells = [
                _cell(column, value[row]) for column, value in zip(columns, values, strict=True)
            ]
            writer.writerow((name, *cells))
    return buffer.getvalue()


def _cell(column: str, value: Any) -> str:
    if column == "state":
        return STATES[int(value)]
    if column == "warmup":
        return "true" if value else "false"
    if isinstance(value, float):
        if np.isnan(value):
            return ""
        return f"{value:.0f}" if column.endswith("tokens") else f"{value:.9f}"
    return str(value)


def vllm_documents(report: Artifact) -> list[dict[str, Any]]:
    """Per scenario the keys that `vllm bench serve --save-result` writes, with its definitions.

    Its definitions are not ours: failed requests are left out, latencies count from the sending,
    rates are over the whole run, TPOT divides by N - 1.
    """
    document = _document(report)
    configs = {scenario["name"]: scenario["config"] for scenario in document["scenarios"]}
    found = []
    for name, records in _records(report):
        measured = records.select(~records.warmup)
        ok = measured.select(measured.state == SUCCEEDED)
        config = configs[name]
        duration_s = float(np.nanmax(measured.end_s) - np.nanmin(measured.sent_s))
        num_in, num_out = int(np.nansum(ok.prompt_tokens)), int(np.nansum(ok.tokens))
        e2e = ok.last_token_s - ok.sent_s
        ttft = ok.first_token_s - ok.sent_s
        with np.errstate(divide="ignore", invalid="ignore"):
            tpot = np.where(ok.tokens > 1, (e2e - ttft) / (ok.tokens - 1), np.nan)
        values = {"ttft": ttft, "tpot": tpot[~np.isnan(tpot)], "itl": gaps_s(ok), "e2el": e2e}
        created = datetime.fromtimestamp(
            next(s["start_unix_s"] for s in document["scenarios"] if s["name"] == name), UTC
        )
        found.append(
            {
                "date": created.strftime("%Y%m%d-%H%M%S"),
                "backend": "openai-chat",
                "endpoint_type": "openai-chat",
                "label": name,
                "model_id": document["endpoint"]["model"],
                "tokenizer_id": None,
                "num_prompts": len(measured),
                "request_rate": config.get("rate_rps", "inf"),
                "burstiness": config.get("burstiness", 1.0),
                "max_concurrency": config.get("concurrency"),
                "duration": duration_s,
                "completed": len(ok),
                "failed": len(measured) - len(ok),
                "total_input_tokens": num_in,
                "total_output_tokens": num_out,
                "request_throughput": len(ok) / duration_s,
                "output_throughput": num_out / duration_s,
                "total_token_throughput": (num_in + num_out) / duration_s,
                **{
                    f"{statistic}_{metric}_ms": value
                    for metric, seconds in values.items()
                    for statistic, value in _vllm_statistics(seconds).items()
                },
            }
        )
    return found


def _vllm_statistics(seconds: NDArray[np.float64]) -> dict[str, float]:
    if not len(seconds):
        seconds = np.zeros(1)
    return {
        "mean": float(np.mean(seconds)) * 1e3,
        "median": float(np.median(seconds)) * 1e3,
        "std": float(np.std(seconds)) * 1e3,
        "p99": float(np.percentile(seconds, 99)) * 1e3,
    }


def prometheus_text(report: Artifact) -> str:
    """Prometheus text format, for the node exporter's textfile directory or a push gateway."""
    document = _document(report)
    lines: dict[str, list[str]] = {}

    def add(name: str, labels: dict[str, str], value: float | None) -> None:
        if value is None:
            return
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.setdefault(name, []).append(f"tuneline_loadtest_{name}{{{inside}}} {value:.9g}")

    for scenario in document["scenarios"]:
        common = {
            "scenario": scenario["name"],
            "model": document["endpoint"]["model"],
            "digest": document["endpoint"]["artifact_short_digest"] or "",
        }
        for metric, figure in scenario["latency"].items():
            name = re.sub(r"_s$", "_seconds", metric)
            for q in ("p50", "p90", "p99"):
                add(name, {**common, "quantile": f"0.{q[1:]}"}, figure[q])
            add(f"{name}_count", common, figure["n"])
        for state in ("succeeded", "failed", "unfinished"):
            add("requests", {**common, "state": state}, scenario["requests"][state])
        add("output_tokens_per_second", common, scenario["throughput"]["output_tokens_per_s"])
        add("requests_per_second", common, scenario["throughput"]["succeeded_rps"])
        for verdict in ("PASS", "FAIL", "INCONCLUSIVE", "INVALID"):
            add("verdict", {**common, "verdict": verdict}, float(scenario["verdict"] == verdict))
    return "".join(
        f"# TYPE tuneline_loadtest_{name} gauge\n" + "\n".join(rows) + "\n"
        for name, rows in lines.items()
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _document(report: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report.path / "report.json").read_text(encoding="utf-8"))
    return found


def _records(report: Artifact) -> list[tuple[str, Records]]:
    return [
        (scenario["name"], Records.load(report.path / f"records-{scenario['name']}.npz"))
        for scenario in _document(report)["scenarios"]
    ]
