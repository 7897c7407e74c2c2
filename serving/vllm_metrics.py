"""The metrics of vLLM 0.32 that alerts, autoscaling and reports may name, with their types.

Names differ between releases and a query on a dead name is silently empty, so this list is checked
against a live server, and whatever queries a metric is checked against this list.
"""

from __future__ import annotations

from typing import Literal

VLLM_METRICS: dict[str, Literal["counter", "gauge", "histogram"]] = {
    # Load: requests being computed and waiting, and the share (0 to 1) of the KV cache in use.
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    # Latency, in seconds.
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
    # Tokens; the count of vllm:iteration_tokens_total rises with every step of the engine.
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:iteration_tokens_total": "histogram",
    # Outcome.
    "vllm:request_success_total": "counter",
    "vllm:num_preemptions_total": "counter",
    "vllm:admission_rejections_total": "counter",
    "http_requests_total": "counter",
    # Prefix cache, and how the cache is set up.
    "vllm:prefix_cache_queries_total": "counter",
    "vllm:prefix_cache_hits_total": "counter",
    "vllm:cache_config_info": "gauge",
}

TUNELINE_METRICS: dict[str, Literal["counter", "gauge"]] = {
    "tuneline_artifact_info": "gauge",
    "tuneline_ready_seconds": "gauge",
    "tuneline_draining": "gauge",
    "tuneline_restarts_total": "counter",
    "tuneline_http_requests_total": "counter",
}
