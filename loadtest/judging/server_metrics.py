"""The server's own figures over the same window, and whether they agree with the client's.

Reads the Prometheus text of vLLM's `/metrics`; a server without it is not an error.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loadtest.client.server_check import MAX_PAGE_BYTES, get
from loadtest.report.schema import Reconciliation
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError
from tuneline.core.vllm_metrics import vllm_metric

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
COUNTERS = {
    "generation_tokens": vllm_metric("vllm:generation_tokens_total", "counter"),
    "prompt_tokens": vllm_metric("vllm:prompt_tokens_total", "counter"),
    "num_succeeded": vllm_metric("vllm:request_success_total", "counter"),
    "num_preemptions": vllm_metric("vllm:num_preemptions_total", "counter"),
    "prefix_cache_queries": vllm_metric("vllm:prefix_cache_queries_total", "counter"),
    "prefix_cache_hits": vllm_metric("vllm:prefix_cache_hits_total", "counter"),
}
HISTOGRAMS = {
    "ttft_s": vllm_metric("vllm:time_to_first_token_seconds", "histogram"),
    "e2e_s": vllm_metric("vllm:e2e_request_latency_seconds", "histogram"),
    "queue_s": vllm_metric("vllm:request_queue_time_seconds", "histogram"),
    "tpot_s": vllm_metric("vllm:request_time_per_output_token_seconds", "histogram"),
}
DRAFTS = {
    "num_drafts": vllm_metric("vllm:spec_decode_num_drafts_total", "counter"),
    "draft_tokens": vllm_metric("vllm:spec_decode_num_draft_tokens_total", "counter"),
    "accepted_tokens": vllm_metric("vllm:spec_decode_num_accepted_tokens_total", "counter"),
}
"""Counters that only a server with speculative decoding has."""
RUNNING = vllm_metric("vllm:num_requests_running", "gauge")
ABORTED = f"{COUNTERS['num_succeeded']}{{abort}}"
"""Our name of the requests that ended because their client left."""
SETTLE_S = 3.0
MAX_DIFFERENCE = 0.1


@dataclass(frozen=True)
class Scrape:
    """Sums over all label sets of the names above."""

    values: dict[str, float] = field(default_factory=dict)

    @property
    def is_vllm(self) -> bool:
        return COUNTERS["generation_tokens"] in self.values


def parse(text: str) -> Scrape:
    """Read the Prometheus text format; a histogram keeps only its `_sum` and `_count`."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        match = SAMPLE.match(line)
        if match is None or match[1].endswith("_bucket"):
            continue
        try:
            number = float(match[3])
        except ValueError:
            continue
        values[match[1]] = values.get(match[1], 0.0) + number
        if match[1] == COUNTERS["num_succeeded"] and 'finished_reason="abort"' in (match[2] or ""):
            values[ABORTED] = values.get(ABORTED, 0.0) + number
    return Scrape(values)


def scrape(endpoint: Endpoint) -> Scrape | None:
    """Return what `/metrics` next to `/v1` says now; None if there is no such page."""
    path = urlsplit(endpoint.url).path.rstrip("/").removesuffix("/v1") + "/metrics"
    try:
        status, body, _ = get(
            endpoint.url, path, endpoint.api_key,
            headers=endpoint.headers, max_bytes=MAX_PAGE_BYTES,
        )  # fmt: skip
    except ServerError:
        return None
    found = parse(body.decode(errors="replace")) if status == 200 else Scrape()
    return found if found.is_vllm else None


def settled_scrape(endpoint: Endpoint, before: Scrape, num_tokens: float) -> Scrape | None:
    """Scrape after the run, once the server has counted its tokens, or after SETTLE_S."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        after = scrape(endpoint)
        if after is None:
            return None
        if delta(before, after, COUNTERS["generation_tokens"]) >= num_tokens:
            return after
        if time.monotonic() > deadline_s:
            return after
        time.sleep(0.1)


def delta(before: Scrape, after: Scrape, name: str) -> float:
    """Return how much a counter has risen."""
    return after.values.get(name, 0.0) - before.values.get(name, 0.0)


def deltas(before: Scrape, after: Scrape) -> dict[str, float | None]:
    """Return the counts over the window, and the means of its histograms."""
    found: dict[str, float | None] = {
        name: delta(before, after, metric) for name, metric in COUNTERS.items()
    }
    for name, metric in HISTOGRAMS.items():
        count = delta(before, after, f"{metric}_count")
        found[f"mean_{name}"] = delta(before, after, f"{metric}_sum") / count if count > 0 else None
    queries = found["prefix_cache_queries"]
    hits = found["prefix_cache_hits"]
    found["prefix_hit_rate"] = hits / queries if queries and hits is not None else None
    if all(name in after.values for name in DRAFTS.values()):
        drafts = {name: delta(before, after, metric) for name, metric in DRAFTS.items()}
        accepted, drafted = drafts["accepted_tokens"], drafts["draft_tokens"]
        found |= drafts
        found["draft_acceptance_rate"] = accepted / drafted if drafted else None
        count = drafts["num_drafts"]
        found["accepted_per_draft"] = accepted / count if count else None
    return found


def reconcile(
    server: dict[str, float | None], client: dict[str, float | None]
) -> tuple[list[Reconciliation], list[str]]:
    """Return rows of client and server figures, and warnings if they differ by over a tenth.

    Args:
        server: The result of `deltas`.
        client: `generation_tokens`, `mean_ttft_s` and `mean_e2e_s` over all requests sent,
            warm-up included, from the sent time.
    """
    rows, warnings = [], []
    # An answer that comes whole has one time.
    is_whole = client.get("mean_ttft_s") == client.get("mean_e2e_s")
    units = {"generation_tokens": "tokens", "mean_ttft_s": "s", "mean_e2e_s": "s"}
    for name, unit in units.items():
        seen, said = client.get(name), server.get(name)
        if name == "mean_ttft_s" and is_whole:
            continue
        if seen is None or said is None:
            continue
        share = (seen - said) / said if said else None
        rows.append(Reconciliation(name=name, unit=unit, client=seen, server=said, share=share))
        if share is not None and abs(share) > MAX_DIFFERENCE:
            warnings.append(
                f"{name}: {seen:.4g} {unit} by the client, {said:.4g} by the server "
                f"({share:+.0%}): network, proxies or other traffic lie between"
            )
    return rows, warnings
