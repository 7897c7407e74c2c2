#!/usr/bin/env bash
# opentelemetry-exporter-prometheus 0.66b2: one exponential histogram takes all metrics off the page.
#
# A view gives a histogram exponential buckets. The specification does not ask a Prometheus exporter for
# them, and the code has a branch that logs "Unsupported metric data" and goes on to the next metric. A
# line before that branch asks each point for a value that such a histogram lacks. Every scrape then
# ends in an AttributeError: the counters and gauges of the process are gone too, and an alert on them
# has no data.
#
# Seen: without the histogram the page has requests_total 1.0, with it AttributeError:
# 'ExponentialHistogramDataPoint' object has no attribute 'value'.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --quiet opentelemetry-exporter-prometheus==0.66b2 \
  opentelemetry-sdk==1.45.2
cd "$work"
"$work/env/bin/python" - <<'PYTHON'
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from prometheus_client import REGISTRY, generate_latest


def page():
    try:
        lines = generate_latest(REGISTRY).decode().splitlines()
    except AttributeError as error:
        return f"AttributeError: {error}"
    return next((line for line in lines if line.startswith("requests_total")), "no requests_total")


view = View(instrument_name="latency", aggregation=ExponentialBucketHistogramAggregation())
provider = MeterProvider([PrometheusMetricReader(scope_info_enabled=False)], views=[view])
meter = provider.get_meter("server")
meter.create_counter("requests").add(1)
before = page()
meter.create_histogram("latency").record(0.5)
after = page()
print(f"without: {before}; with: {after}")
assert before.endswith("1.0")
assert after.startswith("AttributeError"), "changed"
PYTHON
