"""Metrics of our own on vLLM's `/metrics` page."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

# Gauges and counters with labels, no Info and no collector: only these work when several
# front-end processes share one /metrics page through files.
ARTIFACT_INFO = Gauge(
    "tuneline_artifact_info",
    "The served artifact: its name, kind and digest. Always 1.",
    ["name", "kind", "digest"],
    multiprocess_mode="max",
)
READY_SECONDS = Gauge(
    "tuneline_ready_seconds",
    "Seconds from the start of the process until it accepted requests.",
    multiprocess_mode="max",
)
READY_PHASE_SECONDS = Gauge(
    "tuneline_ready_phase_seconds",
    "The parts of tuneline_ready_seconds: imports, engine, routes, answer.",
    ["phase"],
    multiprocess_mode="max",
)
DRAINING = Gauge(
    "tuneline_draining", "1 from SIGTERM until the process ends.", multiprocess_mode="max"
)
STALLED = Gauge(
    "tuneline_stalled",
    "1 while requests wait for the engine and it makes no progress.",
    multiprocess_mode="max",
)
ENGINE_STEPS = Counter(
    "tuneline_engine_steps",
    "Steps of the engine after which requests are still running, as the engine reports them.",
)
IN_FLIGHT = Gauge(
    "tuneline_requests_in_flight",
    "Requests that run the model and are not answered yet.",
    multiprocess_mode="livesum",
)
RESTARTS = Counter(
    "tuneline_restarts", "Times that the supervisor has started this server again after a crash."
)
REQUESTS = Counter(
    "tuneline_http_requests",
    "Requests answered, by route and status; routes that do not exist count as other.",
    ["route", "status"],
)
KEY_REQUESTS = Counter(
    "tuneline_key_requests",
    "Requests that run the model, by the name of the key and the status of the answer.",
    ["key", "status"],
)
KEY_TOKENS = Counter(
    "tuneline_key_tokens",
    "Tokens of prompts and answers, by the name of a key that has a limit of tokens.",
    ["key"],
)
CLIENTS_LEFT = Counter(
    "tuneline_clients_left", "Requests whose client left before the end of the answer.", ["route"]
)
IDLE_CLOSED = Counter(
    "tuneline_idle_connections_closed",
    "Connections that were closed because they sent no whole request in time.",
)
UNREAD_CLOSED = Counter(
    "tuneline_unread_connections_closed",
    "Connections that were closed because their client took no byte of an answer in time.",
)
RECORDED = Counter(
    "tuneline_recorded",
    "Lines that were recorded: requests with their answers, and feedback.",
    ["kind"],
)
UNRECORDED = Counter(
    "tuneline_unrecorded",
    "Answers that could not be recorded, by reason: unfinished, size, behind, disk, form.",
    ["reason"],
)
ADAPTER_INFO = Gauge(
    "tuneline_adapter_info",
    "The version that the name of an adapter means. Always 1.",
    ["adapter", "digest"],
    multiprocess_mode="max",
)
ADAPTER_REQUESTS = Counter(
    "tuneline_adapter_requests",
    "Requests that an adapter answered, by its name and the status of the answer.",
    ["adapter", "status"],
)
ADAPTER_SECONDS = Counter(
    "tuneline_adapter_request_seconds",
    "Seconds of these requests, from their header to the end of the answer.",
    ["adapter"],
)
ADAPTER_PROOFS = Counter(
    "tuneline_adapter_proofs",
    "Proofs of adapters before they are served, by verdict.",
    ["adapter", "verdict"],
)
KEYS_FILE_OK = Gauge(
    "tuneline_keys_file_ok",
    "0 while the keys file cannot be used and the earlier keys stay.",
    multiprocess_mode="min",
)
