"""PromQL over the metrics of one run's server."""

from __future__ import annotations

from k8s.render.facts import Facts
from tuneline.core.vllm_metrics import vllm_metric

EXAMPLE = 'namespace="tuneline",service="model-server"'
"""The labels in the manifests of components, which rendering replaces by those of `selector`."""

LATENCY_METRICS = {
    "ttft_s": vllm_metric("vllm:time_to_first_token_seconds", "histogram"),
    "tpot_s": vllm_metric("vllm:request_time_per_output_token_seconds", "histogram"),
    "e2e_s": vllm_metric("vllm:e2e_request_latency_seconds", "histogram"),
}
"""The server's histogram of each latency that a load test has objectives of."""


def selector(facts: Facts) -> str:
    """Return the labels that a Prometheus operator gives the series of the server's pods."""
    return f'namespace="{facts.config.namespace}",service="{facts.server}"'


def quantile(metric: str, percentile: float, where: str, window: str) -> str:
    """Return the query of a percentile over all pods."""
    rate = f"rate({LATENCY_METRICS[metric]}_bucket{{{where}}}[{window}])"
    return f"histogram_quantile({percentile / 100:g}, sum by (le) ({rate}))"
