# ruff: noqa: E402
"""Measure the memory and CPU time of a long load test: `python benchmarks/soak.py --minutes 8`.

A closed loop of 200 streams runs against the bundled server of known delays. Every second, the
script reads the memory of the load test (the parent process and its client processes) from /proc.
It prints the largest memory, its slope over the second half of the run with its 95 % interval, and
the memory after 24 hours at that slope. The memory while the figures are computed afterwards counts
too. The interval of a short run is wide once it is multiplied by 24 hours: `--minutes 60`.

A higher token rate shows more in the same time, because memory that grew with tokens or with
requests would grow faster. `--itl-s 0.02` is 50 tokens per second and user.

The server's own process is not counted. Client and server share the cores of one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

# This file must not stand for a package of the same name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from loadtest.calibration.start import known_server
from loadtest.client.processes import subprocess_environment
from loadtest.config import LoadTestConfig
from loadtest.judging.drift import drift_of
from loadtest.run import run_loadtest
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import hardware_facts

DAY_H = 24.0
PROMPT = [[{"role": "user", "content": "word " * 60}]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--itl-s", type=float, default=0.01)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _load(arguments)
        return
    options = ("--ttft-s", "0.1", "--itl-s", str(arguments.itl_s), "--num-kept", "2000")
    with known_server(*options) as server, tempfile.TemporaryDirectory() as folder:
        words = ["--child", server.endpoint.url, "--minutes", str(arguments.minutes)]
        words += ["--streams", str(arguments.streams), "--tokens", str(arguments.tokens)]
        process = subprocess.Popen(
            [sys.executable, __file__, *words, "--itl-s", str(arguments.itl_s)],
            env={**subprocess_environment(), "SOAK_DIR": folder},
        )  # fmt: skip
        times_s, memory_mib = _watch(process)
        report = json.loads((Path(folder) / "out" / "report.json").read_text())
        spilled = sum(path.stat().st_size for path in (Path(folder) / "out").glob("*.spill"))
    _print(report, np.array(times_s), np.array(memory_mib), spilled, arguments)


def _load(arguments: argparse.Namespace) -> None:
    """Run the load test in a process of its own."""
    scenario = {
        "name": "soak", "concurrency": arguments.streams, "duration_s": 60 * arguments.minutes,
    }  # fmt: skip
    config = LoadTestConfig.model_validate(
        {
            "scenarios": [scenario],
            "slo": {
                "ttft_s": {"p99": 1.0},
                "max_latency_drift_per_hour": 1.0,
                "max_server_memory_growth_mib_per_hour": 50.0,
            },
            "num_warmup_requests": arguments.streams,
            "max_tokens": arguments.tokens,
            "max_client_lag_s": 0.05,
            "calibrate": False,
        }
    )
    out = Path(os.environ["SOAK_DIR"]) / "out"
    run_loadtest(config, Endpoint(arguments.child, "known"), out, prompts=PROMPT)


def _watch(process: subprocess.Popen[bytes]) -> tuple[list[float], list[float]]:
    """Return times and memory of a process and its children until it ends."""
    began_s = time.monotonic()
    times_s, memory_mib = [], []
    while process.poll() is None:
        found = sum(_resident_mib(one) for one in _family(process.pid))
        if found:
            times_s.append(time.monotonic() - began_s)
            memory_mib.append(found)
        time.sleep(1.0)
    if process.returncode:
        raise SystemExit(f"the load test ended with code {process.returncode}")
    return times_s, memory_mib


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            words = Path(f"/proc/{one}/task/{one}/children").read_text().split()
        except OSError:
            continue
        found += map(int, words)
    return found


def _resident_mib(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass  # it has ended
    return 0.0


def _print(
    report: dict[str, Any],
    times_s: np.ndarray[Any, Any],
    memory_mib: np.ndarray[Any, Any],
    spilled: int,
    arguments: argparse.Namespace,
) -> None:
    (scenario,) = report["scenarios"]
    length_s = 60 * arguments.minutes
    late = (times_s > length_s / 2) & (times_s < length_s)
    drift = drift_of("memory", "MiB", times_s[late], memory_mib[late])
    slope = drift.per_hour or 0.0
    level = float(np.median(memory_mib[late]))
    tokens = scenario["tokens"]["num_output_tokens"]
    cpu_s = scenario["client"]["cpu_s"] + scenario["client"]["parse_cpu_s"]
    found = {
        "streams": arguments.streams,
        "minutes": arguments.minutes,
        "requests": scenario["requests"]["succeeded"],
        "failed": scenario["requests"]["failed"],
        "tokens": tokens,
        "tokens_per_s": scenario["throughput"]["output_tokens_per_s"],
        "memory_mib": round(level, 1),
        "largest_memory_mib": round(float(memory_mib.max()), 1),
        "slope_mib_per_h": round(slope, 2),
        "slope_ci95": drift.ci95 and tuple(round(bound, 2) for bound in drift.ci95),
        "memory_after_24_h_mib": round(float(memory_mib.max()) + max(slope, 0.0) * DAY_H, 1),
        "cpu_s_per_1000_tokens": round(1000 * cpu_s / tokens, 4),
        "bytes_per_token": round(spilled / tokens, 2),
        "verdict": report["verdict"],
        "problems": report["problems"],
        "hardware": hardware_facts(),
    }
    for key in list(found)[:13]:
        print(f"{key:24} {found[key]}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
