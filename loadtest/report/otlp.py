"""A load report as OpenTelemetry metrics, in the JSON form of OTLP.

Format: `ExportMetricsServiceRequest` of opentelemetry-proto 1.x in its JSON encoding: names in
camel case, 64-bit integers as text. A collector takes the text at `/v1/metrics`, or from a file.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from loadtest.report.files import report_of
from loadtest.report.metric_points import MetricPoint, metric_points
from tuneline.core.artifact import Artifact

PREFIX = "tuneline.loadtest"


def otlp_text(artifact: Artifact) -> str:
    """Return the report as one line of OTLP JSON, with a gauge per figure."""
    report = report_of(artifact)
    metrics: dict[str, dict[str, Any]] = {}
    for point in metric_points(report):
        name = f"{PREFIX}.{point.name}"
        gauge: dict[str, Any] = {"dataPoints": []}
        metric = metrics.setdefault(name, {"name": name, "unit": point.unit, "gauge": gauge})
        metric["gauge"]["dataPoints"].append(_data_point(point))
    version = str(artifact.manifest.environment.get("tuneline", ""))
    url = urlsplit(report.endpoint.url)
    # The names of OpenTelemetry's semantic conventions: an address has no scheme and no path.
    resource = {
        "service.name": "tuneline-loadtest",
        "server.address": url.hostname or "",
        "server.port": url.port or (443 if url.scheme == "https" else 80),
        "url.full": report.endpoint.url,
        "tuneline.report.digest": artifact.digest,
    }
    scope = {"name": PREFIX, "version": version}
    document = {
        "resourceMetrics": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeMetrics": [{"scope": scope, "metrics": list(metrics.values())}],
            }
        ]
    }
    return json.dumps(document) + "\n"


def _data_point(point: MetricPoint) -> dict[str, Any]:
    return {
        "attributes": _attributes(point.labels),
        "timeUnixNano": str(round(point.at_unix_s * 1e9)),
        "asDouble": point.value,
    }


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(one)} for key, one in values.items()]


def _value(value: str | int | float) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"doubleValue": value}
