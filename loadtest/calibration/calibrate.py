"""How much the client itself adds: the planned load, against a server whose delays are known."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.calibration.certificate import write_certificate
from loadtest.client.plan import SUCCEEDED, Records
from loadtest.client.planning import make_plan
from loadtest.client.probe import MAX_PAGE_BYTES, get
from loadtest.client.processes import run_workers, subprocess_environment
from loadtest.config import LoadTestConfig, Scenario
from loadtest.judging.statistics import tpot_s
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ServerError

TTFT_S = 0.1
ITL_S = 0.02
NUM_TOKENS = 32
LOAD_S = 2.0
MAX_REQUESTS = 5000
MAX_BUSY_SHARE = 0.5


@dataclass(frozen=True)
class Calibration:
    """The client's figures minus the server's own record of the same requests, in seconds."""

    num_requests: int
    num_streams: int | None
    """Of a closed loop."""
    rate_rps: float | None
    """Of an open loop."""
    ttft_bias_p50_s: float | None
    """Median by the client minus median by the server; null where no request came back whole."""
    ttft_bias_p90_s: float | None
    ttft_bias_p99_s: float | None
    tpot_bias_p50_s: float | None
    true_ttft_p50_s: float | None
    cpu_s_per_1000_tokens: float
    """With the parsing after the window."""
    busy_share: float
    """CPU time of the busiest client process over the window's length."""
    problems: list[str]
    """Requests lost, tokens miscounted, no headroom; empty where it is well."""
    tls: bool = False
    """Measured over TLS."""


@dataclass(frozen=True)
class StartedServer:
    """The bundled server of known delays, while it runs."""

    endpoint: Endpoint
    ca_file: str | None
    """The authority of its certificate, where it speaks TLS."""

    def truths(self) -> list[dict[str, Any]]:
        """The server's own record, one entry per request."""
        url, ca_file = self.endpoint.url, self.ca_file
        _, body, _ = get(url, "/truth", None, ca_file, max_bytes=MAX_PAGE_BYTES)
        found: list[dict[str, Any]] = json.loads(body)
        return found


@contextmanager
def known_server(*options: str, tls: bool = False) -> Iterator[StartedServer]:
    """The bundled server as a process of its own.

    Raises:
        ServerError: It does not start.
    """
    words = ["--ends-with-parent", *options]
    ca_file = None
    with ExitStack() as stack:
        if tls:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tuneline-known-"))
            certificate, key = write_certificate(Path(folder))
            words += ["--certificate", str(certificate), "--private-key", str(key)]
            ca_file = str(certificate)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "loadtest.calibration.known_server", *words],
            stdout=subprocess.PIPE, text=True, env=subprocess_environment(),
        )  # fmt: skip
        try:
            assert process.stdout is not None  # noqa: S101 (started with a pipe)
            line = process.stdout.readline()
            if tls:
                key.unlink()  # it has been read
            if not line:
                raise ServerError(
                    f"the bundled server of known delays ended with code {process.wait()}"
                )
            scheme, port = "https" if tls else "http", json.loads(line)["port"]
            yield StartedServer(Endpoint(f"{scheme}://127.0.0.1:{port}/v1", "known"), ca_file)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def calibrate(
    config: LoadTestConfig,
    scenario: Scenario,
    *,
    tls: bool = False,
    trace_s: Sequence[float] = (),
) -> Calibration:
    """Run about two seconds of a scenario's load against the bundled server.

    Args:
        config: For the number of client processes and the seed.
        scenario: Its arrivals or streams; a ramp at its highest rate.
        tls: Over TLS, as the endpoint is reached: decrypting costs the client time.
        trace_s: With `arrival: trace`, its arrival times; the busiest second is taken.

    Raises:
        ServerError: The bundled server or a client process died.
    """
    load = _load(scenario, trace_s)
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
    return replace(found, tls=tls)


def _load(scenario: Scenario, trace_s: Sequence[float]) -> Scenario:
    """The same load, briefly: about LOAD_S of it, warm-up not needed."""
    if scenario.concurrency is not None:
        request_s = TTFT_S + ITL_S * (NUM_TOKENS - 1)
        rounds = math.ceil(LOAD_S / request_s)
        num = min(max(rounds * scenario.concurrency, 20), MAX_REQUESTS)
        return Scenario(name="calibration", concurrency=scenario.concurrency, num_requests=num)
    if scenario.arrival == "burst":
        num = min(scenario.num_requests or 100, MAX_REQUESTS)
        return Scenario(name="calibration", arrival="burst", num_requests=num)
    if scenario.rate_rps is None:
        times = np.sort(np.asarray(trace_s, np.float64))
        ends = np.searchsorted(times, times + 1.0)
        top = float(np.max(ends - np.arange(len(times)), initial=1))
    else:
        top = max(scenario.rate_rps, scenario.rate_end_rps or 0.0)
    # A slow schedule is not worth waiting for: at least ten requests a second.
    rate_rps = max(top, 10.0)
    num = min(max(math.ceil(rate_rps * LOAD_S), 10), MAX_REQUESTS)
    if scenario.arrival in ("constant", "gamma"):
        return Scenario(
            name="calibration",
            arrival=scenario.arrival,
            burstiness=scenario.burstiness,
            rate_rps=rate_rps,
            num_requests=num,
        )
    return Scenario(name="calibration", rate_rps=rate_rps, num_requests=num)


def compare_with_truth(
    records: Records,
    truths: list[dict[str, Any]],
    *,
    scenario: Scenario,
    cpu_s: float,
    busy_share: float,
) -> Calibration:
    """The client's records against the server's, request by request."""
    problems = []
    by_index = {int(truth["request_id"]): truth for truth in truths}
    ok = records.select(records.state == SUCCEEDED)
    if len(ok) != len(records) or len(by_index) != len(records):
        problems.append(
            f"{len(records)} requests: {len(ok)} succeeded, the server saw {len(by_index)}"
        )
    true_tokens = sum(int(truth["num_tokens"]) for truth in truths)
    if int(np.nansum(ok.tokens)) != true_tokens or int(np.sum(ok.num_events)) != true_tokens:
        problems.append(
            f"the server sent {true_tokens} tokens, the client counted "
            f"{int(np.nansum(ok.tokens))} by usage and {int(np.sum(ok.num_events))} by events"
        )
    if busy_share > MAX_BUSY_SHARE:
        problems.append(
            f"a client process was busy {busy_share:.0%} of the time at this load, at most "
            f"{MAX_BUSY_SHARE:.0%} leaves headroom: use more num_workers"
        )
    whole = [
        by_index[int(index)]
        for index in ok.index
        if int(index) in by_index and len(by_index[int(index)]["token_write_ns"]) > 1
    ]
    if not whole:
        return Calibration(
            len(records), scenario.concurrency, scenario.rate_rps, None, None, None, None, None,
            0.0, busy_share, [*problems, "no request came back whole"],
        )  # fmt: skip
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
