"""From a scenario to the plan that client processes are given. Pure, except for a workload file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loadtest.arrivals.schedule import arrival_times
from loadtest.arrivals.table import pattern_of, peak_rps
from loadtest.client.answer_limit import most_answer_bytes
from loadtest.client.form import asked_form
from loadtest.client.plan import Plan
from loadtest.client.records import UNFINISHED, Records, join_records
from loadtest.config import CancellationsConfig, LoadTestConfig, Scenario
from loadtest.routes.table import ROUTES, route_at
from loadtest.workload.build import Workload, build_workload
from loadtest.workload.checks import Checks
from loadtest.workload.sessions.build import build_sessions
from tuneline.core.artifact import canonical_digest
from tuneline.core.endpoint import Endpoint, split_url
from tuneline.core.errors import ConfigError
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import logger

MAX_CONNECTIONS = 16384
MAX_TRACE_S = 7 * 86400.0
"""A damaged time of a trace would let a run wait for years."""


def make_plan(
    config: LoadTestConfig,
    scenario: Scenario,
    endpoint: Endpoint,
    prompts: Sequence[ChatPrompt],
    *,
    seed: int,
    permutation_seed: int | None = None,
    is_shard: bool = False,
    checks: Checks | None = None,
) -> tuple[Plan, Workload]:
    """Return everything that the client processes need, computed before the start.

    Args:
        permutation_seed, is_shard, checks: See `build_workload`.

    Raises:
        ConfigError: There is nothing to send.
        DataError: A workload file cannot be used.
    """
    build = build_workload if config.workload.sessions is None else build_sessions
    workload = build(
        config,
        endpoint.model,
        prompts,
        seed=seed,
        permutation_seed=permutation_seed,
        is_shard=is_shard,
        checks=checks,
        **_of_scenario(config, scenario),
    )
    # In a closed loop, a process without a stream would leave its requests unsent.
    num_workers = min(config.num_workers, scenario.concurrency or config.num_workers)
    arrivals = num_requests = None
    if scenario.concurrency is None:
        arrivals = _arrivals(config, scenario, workload, seed)
        num_connections = _open_loop_connections(scenario, len(arrivals), num_workers, workload)
    else:
        num_connections = -(-scenario.concurrency // num_workers)
        if scenario.num_requests is not None:
            num_requests = config.num_warmup_requests + scenario.num_requests
    url = split_url(endpoint.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    plan = Plan(
        host=str(url.hostname),
        port=port,
        tls=url.scheme == "https",
        head=_head(workload.path, url.path, str(url.hostname), port),
        headers=dict(endpoint.headers),
        bodies=workload.bodies,
        body_of=workload.body_of or list(range(len(workload.bodies))),
        num_warmup_requests=config.num_warmup_requests,
        arrivals_s=arrivals,
        concurrency=scenario.concurrency,
        num_requests=num_requests,
        duration_s=scenario.duration_s if arrivals is None else None,
        timeout_s=config.timeout_s,
        num_workers=num_workers,
        worker=0,
        num_connections=min(num_connections, MAX_CONNECTIONS),
        num_unchecked=workload.num_unchecked,
        route=route_at(workload.path),
        most_answer_bytes=most_answer_bytes(config, workload),
        form=asked_form(config.extra_body, config.workload.tools),
        sessions=workload.sessions,
        trace_ends=_trace_ends(scenario, arrivals or (), config.num_warmup_requests),
    )
    return _with_cancellations(plan, config.cancellations, seed), workload


def _head(path: str, root: str, host: str, port: int) -> str:
    route = ROUTES[route_at(path)]
    accepted = "text/event-stream" if route.events.is_stream else "application/json"
    host = f"[{host}]" if ":" in host else host
    return (
        f"POST {route.path_below(root)} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: tuneline\r\n"
        f"Accept: {accepted}\r\nAccept-Encoding: identity\r\n"
        "Content-Type: application/json\r\nX-Request-Id: "
    )


def _with_cancellations(plan: Plan, config: CancellationsConfig | None, seed: int) -> Plan:
    if config is None:
        return plan
    return replace(
        plan,
        leave_share=config.share,
        leave_seed=seed,
        leave_after_s=config.after_s,
        leave_after_tokens=config.after_tokens,
    )


def _of_scenario(config: LoadTestConfig, scenario: Scenario) -> dict[str, Any]:
    """Return the scenario's arguments of the workload's builder. One of them is how many requests
    or sessions it begins, or more; None if only the server decides."""
    num_warmup = config.num_warmup_requests
    count = None
    if scenario.num_requests is not None:
        count = num_warmup + scenario.num_requests
    elif scenario.concurrency is None and scenario.duration_s is not None:
        top = peak_rps(scenario)
        if top is not None:
            count = num_warmup + math.ceil(1.5 * top * scenario.duration_s) + 10
    if config.workload.sessions is None:
        return {"num_requests": count}
    return {"num_sessions": count, "trace_speed": scenario.trace_speed or 1.0}


def _arrivals(
    config: LoadTestConfig, scenario: Scenario, workload: Workload, seed: int
) -> list[float]:
    """Return the arrival times of an open loop.

    Raises:
        ConfigError: No arrival is left after warm-up, or a trace lasts longer than MAX_TRACE_S.
    """
    num_warmup = config.num_warmup_requests
    times = arrival_times(
        scenario, num_warmup_requests=num_warmup, seed=seed, trace_s=workload.trace_s
    )
    if scenario.num_requests is not None and len(times) < num_warmup + scenario.num_requests:
        logger.warning(
            "%s: the trace holds %d requests, %d of them after warm-up; %d were asked for",
            scenario.name, len(times), len(times) - num_warmup, scenario.num_requests,
        )  # fmt: skip
    if _trace_ends(scenario, times.tolist(), num_warmup):
        logger.warning(
            "%s: the trace ends %.4g s after warm-up; duration_s is %g", scenario.name,
            times[-1] - times[num_warmup], scenario.duration_s,
        )  # fmt: skip
    if pattern_of(scenario).sources and len(times) and times[-1] > MAX_TRACE_S:
        raise ConfigError(
            f"scenario {scenario.name}: the trace ends {times[-1] / 86400:,.1f} days after its "
            f"begin; expected at most {MAX_TRACE_S / 86400:g}",
            hint="Look for a wrong time in the file, or give duration_s or trace_speed.",
        )
    if len(times) <= num_warmup:
        raise ConfigError(
            f"scenario {scenario.name}: {len(times)} arrivals, and {num_warmup} of them are "
            "warm-up; expected at least one more",
            hint="Try: --set loadtest.num_warmup_requests=0",
        )
    return [float(time) for time in times]


def _trace_ends(scenario: Scenario, times_s: Sequence[float], num_warmup: int) -> bool:
    """Return whether a trace ends before the duration: no gap of it is as long as what is left."""
    if (
        scenario.duration_s is None
        or not pattern_of(scenario).sources
        or len(times_s) <= num_warmup
    ):
        return False
    left_s = times_s[num_warmup] + scenario.duration_s - times_s[-1]
    return bool(left_s > max(np.diff(times_s[num_warmup:]), default=0.0))


def plan_digest(plan: Plan, workload: Workload) -> str:
    """Return a digest that is equal for runs that ask the same at the same times."""
    return canonical_digest(
        [
            workload.digest, plan.arrivals_s, plan.concurrency, plan.num_requests,
            plan.duration_s, plan.num_warmup_requests, plan.timeout_s,
            *([plan.sessions.delays_s] if plan.sessions else []),
        ]
    )  # fmt: skip


def _open_loop_connections(
    scenario: Scenario, num_arrivals: int, num_workers: int, workload: Workload
) -> int:
    """Return connections for four seconds of arrivals; a longer queue opens more as it grows.
    Sessions overlap for longer, each with one request at a time."""
    top = peak_rps(scenario)
    most = -(-num_arrivals // num_workers)
    if top is None:
        return most
    if workload.sessions is not None:
        top *= workload.sessions.mean_turns
    return min(most, max(16, math.ceil(4 * top)))


def with_unsent(plan: Plan, records: Records) -> Records:
    """Add an unfinished row for each request that was offered and never begun.

    A session that never began offers its first turn only: no later turn was due.
    """
    offered = plan.num_requests if plan.arrivals_s is None else len(plan.arrivals_s)
    missing = sorted(set(range(offered or 0)) - {int(number) for number in records.session})
    if not missing:
        return records
    count = len(missing)
    never, zero = np.full(count, np.nan), np.zeros(count, np.int64)
    if plan.arrivals_s is None:
        intended = never
    else:
        intended = np.array([plan.arrivals_s[number] for number in missing])
    stride = 1 if plan.sessions is None else plan.sessions.stride
    rows = Records(
        index=np.array(missing, np.int64) * stride,
        session=np.array(missing, np.int64),
        turn=zero,
        warmup=np.array(missing) < plan.num_warmup_requests,
        state=np.full(count, UNFINISHED, np.uint8),
        error=np.full(count, "", records.error.dtype),
        intended_s=intended,
        sent_s=never, first_byte_s=never, first_token_s=never, last_token_s=never, end_s=never,
        tokens=never, first_tokens=never, prompt_tokens=never, cached_tokens=never,
        retry_after_s=never, connect_s=np.zeros(count),
        resent=zero.astype(bool), without_done=zero.astype(bool),
        merged_events=zero, num_events=zero,
        event_s=np.zeros(0), event_tokens=np.zeros(0),
    )  # fmt: skip
    return join_records([records, rows])
