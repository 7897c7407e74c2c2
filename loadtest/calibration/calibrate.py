"""Measure what the client itself adds: the planned load, against a server of known delays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loadtest.arrivals.table import brief
from loadtest.calibration.start import known_server
from loadtest.client.prepare import make_plan
from loadtest.client.processes import run_workers
from loadtest.client.records import SUCCEEDED, Records
from loadtest.config import LoadTestConfig, Scenario
from loadtest.judging.latency import tpot_s
from loadtest.judging.validity import calibration_problems, lag_budget_s
from loadtest.report.schema import Calibration

TTFT_S = 0.1
ITL_S = 0.02
NUM_TOKENS = 32
LOAD_S = 2.0
MAX_REQUESTS = 5000
MAX_BUSY_SHARE = 0.5


def calibrate_client(
    config: LoadTestConfig, *, tls: bool = False
) -> tuple[dict[str, Calibration], list[str]]:
    """Measure what the client adds at the load of each scenario.

    Args:
        tls: Whether the endpoint is reached over TLS: decrypting costs the client time.

    Returns:
        The calibration of each scenario by name, and the problems of a client that adds too much.

    Raises:
        ServerError: The bundled server or a client process died.
    """
    found = {one.name: calibrate(config, one, tls=tls) for one in config.scenarios}
    problems = [
        f"{scenario.name}: {problem}"
        for scenario in config.scenarios
        for problem in calibration_problems(
            found[scenario.name], lag_budget_s(config, scenario.slo or config.slo)
        )
    ]
    return found, problems


def calibrate(
    config: LoadTestConfig,
    scenario: Scenario,
    *,
    tls: bool = False,
    times_s: Sequence[float] = (),
    requests_per_arrival: float = 1.0,
) -> Calibration:
    """Run about two seconds of a scenario's load against the bundled server.

    Args:
        config: For the number of client processes and the seed.
        scenario: For its streams, or its arrivals at their highest rate.
        tls: Whether to use TLS, as for the endpoint: decrypting costs the client time.
        times_s: The arrival times, for a pattern that has no rate.
        requests_per_arrival: The mean number of turns, if sessions arrive.

    Raises:
        ServerError: The bundled server or a client process died.
    """
    load = _load(scenario, times_s, requests_per_arrival)
    trial = config.model_copy(
        update={
            "scenarios": [load],
            "max_tokens": NUM_TOKENS,
            "ignore_eos": True,
            "num_warmup_requests": 0,
            "timeout_s": 30.0,
            "workload": type(config.workload)(),
        }
    )
    prompts = [[{"role": "user", "content": "word " * 64}]]
    with known_server("--ttft-s", str(TTFT_S), "--itl-s", str(ITL_S), tls=tls) as server:
        plan, _ = make_plan(trial, load, server.endpoint, prompts, seed=config.seed)
        measured = run_workers(replace(plan, ca_file=server.ca_file), None)
        truths = server.truths()
    checks = [worker["self_check"] for worker in measured.workers]
    parse_s = sum(float(worker["parse_cpu_s"]) for worker in measured.workers)
    busy = max(float(check["cpu_s"]) / max(float(check["wall_s"]), 1e-9) for check in checks)
    found = compare_with_truth(
        measured.records,
        truths,
        scenario=load,
        cpu_s=sum(float(check["cpu_s"]) for check in checks) + parse_s,
        busy_share=busy,
    )
    return found.model_copy(update={"tls": tls})


def _load(scenario: Scenario, times_s: Sequence[float], requests_per_arrival: float) -> Scenario:
    """Return the same load for about LOAD_S, without warm-up. Sessions become single requests, as
    many per second."""
    if scenario.concurrency is not None:
        request_s = TTFT_S + ITL_S * (NUM_TOKENS - 1)
        rounds = math.ceil(LOAD_S / request_s)
        num = min(max(rounds * scenario.concurrency, 20), MAX_REQUESTS)
        return Scenario(name="calibration", concurrency=scenario.concurrency, num_requests=num)
    short = brief(scenario, times_s, duration_s=LOAD_S, max_requests=MAX_REQUESTS)
    if "rate_rps" in short:
        short["rate_rps"] *= requests_per_arrival
        short["num_requests"] = min(
            math.ceil(short["num_requests"] * requests_per_arrival), MAX_REQUESTS
        )
    return Scenario.model_validate({"name": "calibration", **short})


def compare_with_truth(
    records: Records,
    truths: list[dict[str, Any]],
    *,
    scenario: Scenario,
    cpu_s: float,
    busy_share: float,
) -> Calibration:
    """Compare the client's records with the server's, request by request."""
    by_index = {int(truth["request_id"]): truth for truth in truths}
    ok = records.select(records.state == SUCCEEDED)
    true_tokens = sum(int(truth["num_tokens"]) for truth in truths)
    problems = _problems(records, ok, len(by_index), true_tokens, busy_share)
    whole = [
        by_index[int(index)]
        for index in ok.index
        if int(index) in by_index and len(by_index[int(index)]["token_write_ns"]) > 1
    ]
    if not whole:
        return Calibration(
            num_requests=len(records),
            num_streams=scenario.concurrency,
            rate_rps=scenario.rate_rps,
            ttft_bias_p50_s=None,
            ttft_bias_p90_s=None,
            ttft_bias_p99_s=None,
            tpot_bias_p50_s=None,
            true_ttft_p50_s=None,
            cpu_s_per_1000_tokens=0.0,
            busy_share=busy_share,
            problems=[*problems, "no request came back whole"],
        )
    true_ttft = np.array([(t["token_write_ns"][0] - t["received_ns"]) / 1e9 for t in whole])
    true_tpot = np.array(
        [
            (t["token_write_ns"][-1] - t["token_write_ns"][0]) / 1e9 / (t["num_tokens"] - 1)
            for t in whole
        ]
    )
    ttft = ok.first_token_s - ok.sent_s

    def bias(q: float) -> float:
        return float(np.percentile(ttft, q) - np.percentile(true_ttft, q))

    return Calibration(
        num_requests=len(records),
        num_streams=scenario.concurrency,
        rate_rps=scenario.rate_rps,
        ttft_bias_p50_s=bias(50),
        ttft_bias_p90_s=bias(90),
        ttft_bias_p99_s=bias(99),
        tpot_bias_p50_s=float(np.nanmedian(tpot_s(ok)) - np.median(true_tpot)),
        true_ttft_p50_s=float(np.median(true_ttft)),
        cpu_s_per_1000_tokens=1000 * cpu_s / max(true_tokens, 1),
        busy_share=busy_share,
        problems=problems,
    )


def _problems(
    records: Records, ok: Records, num_seen: int, true_tokens: int, busy_share: float
) -> list[str]:
    """Return lost requests, miscounted tokens and missing headroom."""
    problems = []
    if len(ok) != len(records) or num_seen != len(records):
        problems.append(f"{len(records)} requests: {len(ok)} succeeded, the server saw {num_seen}")
    if int(np.nansum(ok.tokens)) != true_tokens or int(np.sum(ok.num_events)) != true_tokens:
        problems.append(
            f"the server sent {true_tokens} tokens, the client counted "
            f"{int(np.nansum(ok.tokens))} by usage and {int(np.sum(ok.num_events))} by events"
        )
    if busy_share > MAX_BUSY_SHARE:
        problems.append(
            f"a client process was busy {busy_share:.0%} of the time at this load; at most "
            f"{MAX_BUSY_SHARE:.0%} leaves headroom: raise num_workers"
        )
    return problems
