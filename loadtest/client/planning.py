"""From a scenario to the plan that client processes are given. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from loadtest.arrivals.schedule import arrival_times
from loadtest.client.plan import UNFINISHED, Plan, Records, merge_records
from loadtest.config import LoadTestConfig, Scenario
from loadtest.workload.requests import Workload, build_workload
from tuneline.core.artifact import canonical_digest
from tuneline.core.endpoint import Endpoint, split_url
from tuneline.core.errors import ConfigError
from tuneline.core.messages import Messages
from tuneline.core.progress import logger

MAX_CONNECTIONS = 4096


def make_plan(
    config: LoadTestConfig,
    scenario: Scenario,
    endpoint: Endpoint,
    prompts: Sequence[Messages],
    *,
    seed: int,
    permutation_seed: int | None = None,
    is_shard: bool = False,
) -> tuple[Plan, Workload]:
    """Everything the client processes need, computed before the start.

    Args:
        permutation_seed, is_shard: As of `build_workload`.

    Raises:
        ConfigError: There is nothing to send.
        DataError: A workload file cannot be used.
    """
    num_warmup = config.num_warmup_requests
    known_count = None
    if scenario.num_requests is not None:
        known_count = num_warmup + scenario.num_requests
    elif scenario.rate_rps is not None and scenario.duration_s is not None:
        top = max(scenario.rate_rps, scenario.rate_end_rps or 0.0)
        known_count = num_warmup + math.ceil(1.5 * top * scenario.duration_s) + 10
    workload = build_workload(
        config,
        endpoint.model,
        prompts,
        seed=seed,
        num_requests=known_count,
        permutation_seed=permutation_seed,
        is_shard=is_shard,
    )
    # A process of a closed loop without a stream would leave the requests dealt to it unsent.
    num_workers = min(config.num_workers, scenario.concurrency or config.num_workers)
    arrivals = num_requests = None
    if scenario.loop == "open":
        times, num_warmup = arrival_times(
            scenario, num_warmup_requests=num_warmup, seed=seed, trace_s=workload.trace_s
        )
        arrivals = [float(time) for time in times]
        if scenario.arrival == "trace" and len(arrivals) < (known_count or 0):
            logger.warning(
                "%s: the trace holds %d requests, %d of them after warm-up; %d were asked for",
                scenario.name, len(arrivals), len(arrivals) - num_warmup, scenario.num_requests,
            )  # fmt: skip
        if len(arrivals) <= num_warmup:
            raise ConfigError(f"scenario {scenario.name}: no arrival is left after warm-up")
        num_connections = _open_loop_connections(scenario, len(arrivals), num_workers)
    else:
        assert scenario.concurrency is not None  # noqa: S101 (a closed loop has it)
        num_connections = -(-scenario.concurrency // num_workers)
        if scenario.num_requests is not None:
            num_requests = num_warmup + scenario.num_requests
    url = split_url(endpoint.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    host = f"[{url.hostname}]" if ":" in str(url.hostname) else url.hostname
    plan = Plan(
        host=str(url.hostname),
        port=port,
        tls=url.scheme == "https",
        head=(
            f"POST {url.path.rstrip('/')}/{workload.path} HTTP/1.1\r\n"
            f"Host: {host}:{port}\r\n"
            "User-Agent: tuneline\r\nAccept: text/event-stream\r\nAccept-Encoding: identity\r\n"
            "Content-Type: application/json\r\nX-Request-Id: "
        ),
        bodies=workload.bodies,
        body_of=list(range(len(workload.bodies))),
        num_warmup_requests=num_warmup,
        arrivals_s=arrivals,
        concurrency=scenario.concurrency,
        num_requests=num_requests,
        duration_s=scenario.duration_s if arrivals is None else None,
        timeout_s=config.timeout_s,
        num_workers=num_workers,
        worker=0,
        num_connections=min(num_connections, MAX_CONNECTIONS),
    )
    return plan, workload


def plan_digest(plan: Plan, workload: Workload) -> str:
    """Equal for runs that ask the same at the same times, whatever the server."""
    return canonical_digest(
        [
            workload.digest, plan.arrivals_s, plan.concurrency, plan.num_requests,
            plan.duration_s, plan.num_warmup_requests, plan.timeout_s,
        ]
    )  # fmt: skip


def _open_loop_connections(scenario: Scenario, num_requests: int, num_workers: int) -> int:
    """Enough for four seconds of arrivals; a longer queue opens more as it grows."""
    if scenario.rate_rps is None:
        return -(-num_requests // num_workers)
    top = max(scenario.rate_rps, scenario.rate_end_rps or 0.0)
    return min(-(-num_requests // num_workers), max(16, math.ceil(4 * top)))


def with_unsent(plan: Plan, records: Records) -> Records:
    """Add a row for each request that was offered and never begun: they are unfinished."""
    offered = plan.num_requests if plan.arrivals_s is None else len(plan.arrivals_s)
    missing = sorted(set(range(offered or 0)) - {int(index) for index in records.index})
    if not missing:
        return records
    count = len(missing)
    never, zero = np.full(count, np.nan), np.zeros(count, np.int64)
    if plan.arrivals_s is None:
        intended = never
    else:
        intended = np.array([plan.arrivals_s[index] for index in missing])
    rows = Records(
        index=np.array(missing, np.int64),
        warmup=np.array(missing) < plan.num_warmup_requests,
        state=np.full(count, UNFINISHED, np.uint8),
        error=np.full(count, "", records.error.dtype),
        intended_s=intended,
        sent_s=never, first_byte_s=never, first_token_s=never, last_token_s=never, end_s=never,
        tokens=never, first_tokens=never, prompt_tokens=never, cached_tokens=never,
        retry_after_s=never, merged_events=zero, num_events=zero,
        event_s=np.zeros(0), event_tokens=np.zeros(0),
    )  # fmt: skip
    return merge_records([records, rows])
