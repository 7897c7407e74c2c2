"""A load report as Prometheus text, for a textfile collector or a push gateway."""

from __future__ import annotations

import re

from loadtest.client.records import STATES
from loadtest.judging.verdict import SEVERITY
from loadtest.percentiles import percentile_of
from loadtest.report.files import report_of
from loadtest.report.terminal import has_tokens
from tuneline.core.artifact import Artifact


def prometheus_text(artifact: Artifact) -> str:
    """Return the report in the Prometheus text format."""
    report = report_of(artifact)
    lines: dict[str, list[str]] = {}

    def add(name: str, labels: dict[str, str], value: float | None) -> None:
        if value is None:
            return
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.setdefault(name, []).append(f"tuneline_loadtest_{name}{{{inside}}} {value:.9g}")

    for scenario in report.scenarios:
        common = {
            "scenario": scenario.name,
            "model": report.endpoint.model,
            "digest": report.endpoint.artifact_short_digest or "",
        }
        for metric, found in scenario.latency.items():
            name = re.sub(r"_s$", "_seconds", metric)
            for percentile, value in found.percentiles.items():
                quantile = f"{percentile_of(percentile) / 100:g}"
                # Two decimals at least: a quantile keeps its label from release to release.
                label = quantile if len(quantile) >= 4 else f"{float(quantile):.2f}"
                add(name, {**common, "quantile": label}, value)
            add(f"{name}_count", common, found.n)
        requests = scenario.requests
        for state, count in zip(
            STATES,
            (requests.succeeded, requests.failed, requests.unfinished, requests.cancelled),
            strict=True,
        ):
            add("requests", {**common, "state": state}, count)
        if (answers := scenario.answers) is not None:
            add("answers_compared", common, answers.num_compared)
            add("answers_equal", common, answers.num_equal)
        if (sessions := scenario.sessions) is not None:
            for state, count in zip(
                STATES, (sessions.succeeded, sessions.failed, sessions.unfinished), strict=False
            ):
                add("sessions", {**common, "state": state}, count)
            add("turns_not_reached", common, sessions.num_turns_not_reached)
        if has_tokens(scenario):
            add("output_tokens_per_second", common, scenario.throughput.output_tokens_per_s)
        add("prompt_tokens_per_second", common, scenario.throughput.prompt_tokens_per_s)
        add("requests_per_second", common, scenario.throughput.succeeded_rps)
        for verdict in reversed(SEVERITY):
            add("verdict", {**common, "verdict": verdict}, float(scenario.verdict == verdict))
    return "".join(
        f"# TYPE tuneline_loadtest_{name} gauge\n" + "\n".join(rows) + "\n"
        for name, rows in lines.items()
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
