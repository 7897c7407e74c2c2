"""The metrics that Tuneline reads from a server, with their types.

Names differ between releases of vLLM, and a query on a name that does not exist is silently empty.
A test compares the list with a live server, and every reader takes its names from the list.
"""

from __future__ import annotations

from typing import Literal

MetricType = Literal["counter", "gauge", "histogram"]

VLLM_RELEASE = "0.32"
"""The release that `VLLM_METRICS` describes."""

VLLM_METRICS: dict[str, MetricType] = {
    # Load: requests that are computed and that wait, and the used share (0 to 1) of the KV cache.
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
    "vllm:request_prefill_kv_computed_tokens": "histogram",
    "vllm:request_decode_time_seconds": "histogram",
    # Tokens; vllm:iteration_tokens_total counts the steps of the engine.
    "vllm:prompt_tokens_total": "counter",
    "vllm:generation_tokens_total": "counter",
    "vllm:iteration_tokens_total": "histogram",
    # Outcome.
    "vllm:request_success_total": "counter",
    "vllm:num_preemptions_total": "counter",
    "vllm:admission_rejections_total": "counter",
    "http_requests_total": "counter",
    # Prefix cache, and the configuration of the cache.
    "vllm:prefix_cache_queries_total": "counter",
    "vllm:prefix_cache_hits_total": "counter",
    "vllm:cache_config_info": "gauge",
}

SPECULATION_METRICS: dict[str, MetricType] = {
    "vllm:spec_decode_num_drafts_total": "counter",
    "vllm:spec_decode_num_draft_tokens_total": "counter",
    "vllm:spec_decode_num_accepted_tokens_total": "counter",
}
"""The metrics of a server with speculative decoding; another server has none of them."""

TUNELINE_METRICS: dict[str, MetricType] = {
    "tuneline_artifact_info": "gauge",
    "tuneline_ready_seconds": "gauge",
    "tuneline_draining": "gauge",
    "tuneline_stalled": "gauge",
    "tuneline_engine_steps_total": "counter",
    "tuneline_requests_in_flight": "gauge",
    "tuneline_restarts_total": "counter",
    "tuneline_http_requests_total": "counter",
    "tuneline_key_requests_total": "counter",
    "tuneline_keys_file_ok": "gauge",
    "tuneline_adapter_proofs_total": "counter",
    "tuneline_unrecorded_total": "counter",
}
"""The metrics of our own middleware, which runs inside the server."""


def vllm_metric(name: str, metric_type: MetricType) -> str:
    """Return `name` if the pinned release of vLLM has it with that type.

    Raises:
        KeyError: The list has no such metric, or lists it with another type.
    """
    if (VLLM_METRICS | SPECULATION_METRICS).get(name) != metric_type:
        raise KeyError(f"vLLM {VLLM_RELEASE} has no {metric_type} {name}")
    return name
